"""The model card of a pool's folder: it says `import prw`, and keeps what a host or a user wrote."""

import pytest
from huggingface_hub import ModelCard

import prw
from prw.tuner.card import put_card

CONFIG = prw.PrwConfig(rank=3, experts=["one", "two"], base_model_name_or_path="org/base")


def test_a_new_card_describes_the_pool(tmp_path):
    put_card(tmp_path, CONFIG.card())
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.library_name, card.data.base_model) == ("peft", "org/base")
    assert card.data.tags == ["prw", "routed-lora"]
    for part in ("# A PRW pool: one, two", "import prw ", "| rank, scale | 3, 2.0 |"):
        assert part in card.text


HEADER = "---\nlicense: mit\nmine: [1, 2]\n---\n"


@pytest.mark.parametrize("header", [HEADER, "", "---\nlicense: [mit\n---\n", "---\njust a sentence\n---\n"])
def test_what_was_written_into_a_card_is_kept(tmp_path, header):
    file = tmp_path / "README.md"
    file.write_text(f"{header}\n# Mine\n\nMy own words.\n", encoding="utf-8")
    put_card(tmp_path, CONFIG.card())
    text = file.read_text(encoding="utf-8")
    assert "import prw " in text
    assert text.count("# Mine\n\nMy own words.\n") == 1
    assert all(line in text for line in header.splitlines() if line.startswith(("license", "just")))
    if header == HEADER:
        data = ModelCard(text).data.to_dict()
        assert (data["license"], data["mine"]) == ("mit", [1, 2])
        assert text.index("import prw ") < text.index("# Mine")
    put_card(tmp_path, CONFIG.card())
    assert file.read_text(encoding="utf-8") == text, "a card that says it is left alone"
