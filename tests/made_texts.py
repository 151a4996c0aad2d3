"""Small made texts in the layouts of the sources that recipes read."""

import json
from pathlib import Path


def requests_as_published(folder: Path) -> Path:
    """Small made requests in the layout of the source: a folder an intent, pieces of a request, one file in Latin-1."""
    orders = {
        "PlayMusic": ([" play ", "1999", " on  spotify"], ["play ", "café", " please"], ["hear ", "some jazz"]),
        "RateBook": (["rate ", "this book", " 4 of 6"], ["give ", "it", " 3 stars"], ["rate ", "it", " 5"]),
    }
    for intent, requests in orders.items():
        (folder / intent).mkdir(parents=True)
        for name, repeats in ((f"train_{intent}_full", 12), (f"validate_{intent}", 2)):
            data = [
                {"data": [{"text": text, "entity": "it"} if place == 1 else {"text": text}
                          for place, text in enumerate(pieces)]}
                for pieces in requests for _ in range(repeats)
            ]  # fmt: skip
            text = json.dumps({intent: data}, ensure_ascii=False)
            encoding = "latin-1" if name.startswith("train_Play") else "utf-8"
            (folder / intent / f"{name}.json").write_text(text, encoding=encoding)
    return folder


def poems(path: Path) -> Path:
    """A file of the program fortune: entries of coloured titles and plain lines, a line "%" between them."""
    lines = ["春眠不觉晓，", "处处闻啼鸟。", "夜来风雨声，", "花落知多少。"]
    entries = [
        f"\x1b[32m《其{i}》\x1b[m\n\x1b[33m作者：甲\x1b[m\n" + "\n".join(lines[i % 4 :] + lines[: i % 4])
        for i in range(6)
    ]
    path.write_text("\n%\n".join([*entries, ""]), encoding="utf-8")
    return path
