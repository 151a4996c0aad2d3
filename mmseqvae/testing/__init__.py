"""What the library asks of an encoder, a decoder and an objective, as checks for whoever writes one.

from mmseqvae.testing import verify_decoder, verify_encoder, verify_objective

verify_encoder(MyEncoder(latent=32), channels=80)       # or vocabulary=30, for tokens
verify_decoder(MyDecoder(latent=32), channels=80)
verify_objective(my_objective)

Each raises a `ContractError` whose first line says what is wrong, where, and what to do. They need no test framework
and are the same at every call: batches and seeds are fixed. A part is verified as a copy, in float64, in evaluation
mode and on its own device; neither it nor the global noise changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmseqvae import lazy

if TYPE_CHECKING:
    from mmseqvae.testing.contract import ContractError as ContractError
    from mmseqvae.testing.contract import made_batches as made_batches
    from mmseqvae.testing.encoders_and_decoders import verify_decoder as verify_decoder
    from mmseqvae.testing.encoders_and_decoders import verify_encoder as verify_encoder
    from mmseqvae.testing.objectives import small_model as small_model
    from mmseqvae.testing.objectives import verify_objective as verify_objective

_HOME = {
    "ContractError": "contract",
    "made_batches": "contract",
    "small_model": "objectives",
    "verify_decoder": "encoders_and_decoders",
    "verify_encoder": "encoders_and_decoders",
    "verify_objective": "objectives",
}
__getattr__ = lazy(__name__, _HOME)
__all__ = sorted(_HOME)


def __dir__() -> list[str]:
    return __all__
