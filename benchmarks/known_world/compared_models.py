"""The constructions that the known world compares: an objective, the fusion that belongs to it, a prior."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Run:
    """One construction: an objective with its options, the fusion that belongs to it, the prior it is trained with.

    private: dimensions of each modality's own, of the LATENT that it reads and writes. conditional: "mixture" or
    "flow", the kind of q(z | x_m) that is fitted after training in place of the Gaussian one; none by default.
    """

    objective: str
    fusion: str = "poe"
    prior: str = "standard"
    private: int = 0
    conditional: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What is not left at its default, so that a new field does not make finished runs strangers."""
        plain = Run(self.objective)
        return {"objective": self.objective} | {
            f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != getattr(plain, f.name)
        }


def coordinated(c: float, draws: int = 1, fusion: str = "poe", prior: str = "mixture", **settings: Any) -> Run:
    options = {"coordination": c, "draws": draws, "self_reconstruction": 0.0} | settings.pop("options", {})
    return Run("coordinated", fusion, prior, options=options, **settings)


# The library's default is printed bold; where it loses more than another, the table says so.
DEFAULT = "coordinated 0.3, own 0.3, prior learnt, mixtures given m"
RUNS: dict[str, Run] = {
    "ELBO": Run("elbo"),
    "MVAE": Run("mvae"),
    "MMVAE": Run("mixture", "moe"),
    "MMVAE, 5 draws": Run("importance", "moe", options={"draws": 5}),
    "MoPoE": Run("mixture", "mopoe", options={"tight": False, "stratified": False}),
    "MVTCAE": Run("mvtcae", "poe-without-base"),
    "JMVAE": Run("jmvae", "joint"),
    "TELBO": Run("telbo", "joint"),
    "JNF": Run("elbo", "joint", conditional="flow"),
    "CVAE, t to a": Run("cvae", "joint"),
    "CRMVAE": coordinated(1.0, prior="standard", options={"token_reconstruction": 0.0, "self_reconstruction": 1.0}),
    "DMVAE": Run("dmvae", private=2),
    "MMVAE+": Run("mmvae_plus", "moe", private=2),
    "coordinated 1": coordinated(1.0, prior="standard"),
    "coordinated 1, prior learnt": coordinated(1.0),
    "coordinated 0.3, prior learnt": coordinated(0.3),
    "coordinated 0.1, prior learnt": coordinated(0.1),
    "joint encoder detached, prior learnt": coordinated(1.0, fusion="joint", options={"detach": True}),
    "coordinated 0.3, private, prior learnt": coordinated(0.3, private=2),
    "MMVAE, prior learnt": Run("mixture", "moe", "mixture"),
    "MVTCAE, prior learnt": Run("mvtcae", "poe-without-base", "mixture"),
    "ELBO, prior learnt, mixtures given m": Run("elbo", prior="mixture", conditional="mixture"),
    "joint encoder, prior learnt, mixtures given m": Run("elbo", "joint", "mixture", conditional="mixture"),
    "5 draws, prior learnt, mixtures given m": Run(
        "importance", "poe", "mixture", conditional="mixture", options={"draws": 5}
    ),
    "MVTCAE, prior learnt, mixtures given m": Run("mvtcae", "poe-without-base", "mixture", conditional="mixture"),
    "coordinated 0.3, prior learnt, mixtures given m": coordinated(0.3, conditional="mixture"),
    "coordinated 0.1, prior learnt, mixtures given m": coordinated(0.1, conditional="mixture"),
    "coordinated 0.3, own 0.3, prior learnt, mixtures given m": coordinated(
        0.3, conditional="mixture", options={"self_reconstruction": 0.3}
    ),
    "coordinated 0.1, own 0.3, prior learnt, mixtures given m": coordinated(
        0.1, conditional="mixture", options={"self_reconstruction": 0.3}
    ),
    "coordinated 0.03, own 0.3, prior learnt, mixtures given m": coordinated(
        0.03, conditional="mixture", options={"self_reconstruction": 0.3}
    ),
    "coordinated 0.1, own 0.1, prior learnt, mixtures given m": coordinated(
        0.1, conditional="mixture", options={"self_reconstruction": 0.1}
    ),
    "coordinated 1.0, own 0.3, prior learnt, mixtures given m": coordinated(
        1.0, conditional="mixture", options={"self_reconstruction": 0.3}
    ),
    "coordinated 0.1, own 1.0, prior learnt, mixtures given m": coordinated(
        0.1, conditional="mixture", options={"self_reconstruction": 1.0}
    ),
    "coordinated 0.1, own 0.3, 2 draws, prior learnt, mixtures given m": coordinated(
        0.1, 2, conditional="mixture", options={"self_reconstruction": 0.3}
    ),
    "coordinated 0.1, own 0.3, 5 draws, prior learnt, mixtures given m": coordinated(
        0.1, 5, conditional="mixture", options={"self_reconstruction": 0.3}
    ),
    "coordinated 0.03, own 0.3, 5 draws, prior learnt, mixtures given m": coordinated(
        0.03, 5, conditional="mixture", options={"self_reconstruction": 0.3}
    ),
    "coordinated 0.3, 2 draws, prior learnt, mixtures given m": coordinated(0.3, 2, conditional="mixture"),
    "coordinated 0.3, 5 draws, prior learnt, mixtures given m": coordinated(0.3, 5, conditional="mixture"),
    "coordinated 0.1, 2 draws, prior learnt, mixtures given m": coordinated(0.1, 2, conditional="mixture"),
    "coordinated 0.1, 5 draws, prior learnt, mixtures given m": coordinated(0.1, 5, conditional="mixture"),
    "coordinated 0.03, 2 draws, prior learnt, mixtures given m": coordinated(0.03, 2, conditional="mixture"),
    "coordinated 0.03, 5 draws, prior learnt, mixtures given m": coordinated(0.03, 5, conditional="mixture"),
    "coordinated 0.0, 2 draws, prior learnt, mixtures given m": coordinated(0.0, 2, conditional="mixture"),
    "coordinated 0.0, 5 draws, prior learnt, mixtures given m": coordinated(0.0, 5, conditional="mixture"),
}

# What the default is held against: what loses least with it in one of the worlds.
CLOSE = {
    DEFAULT,
    "coordinated 0.1, own 0.1, prior learnt, mixtures given m",
    "coordinated 0.1, own 0.3, 5 draws, prior learnt, mixtures given m",
    "coordinated 0.1, 2 draws, prior learnt, mixtures given m",
    "coordinated 0.03, 2 draws, prior learnt, mixtures given m",
    "MVTCAE, prior learnt, mixtures given m",
}
