from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinipot_llm.documents.language import dominant_language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The Alps are a mountain range.", "en"),
        ("Die Alpen sind ein Gebirge.", "en"),
        ("Альпы — горный хребет.", "en"),
        ("알프스는 유럽의 산맥이다. (The Alps)", "ko"),
        ("大韓民國의 憲法은 1948년에 制定되었다.", "ko"),
        ("アルプス山脈はヨーロッパの山脈である。", "ja"),
        ("東京都は日本国の首都であり、人口最大の都市。", "ja"),
        ("阿尔卑斯山是欧洲的一条山脉。", "zh"),
        (
            "《ノルウェイの森》是日本作家村上春树于一九八七年发表的一部长篇爱情小说,影响了几代读者,并被译成多种语言出版发行。",
            "zh",
        ),
        ("جبال الألب سلسلة جبال في أوروبا.", "ar"),
        ("رشته‌کوه آلپ در اروپا قرار دارد و چند کشور را دربر می‌گیرد.", "en"),
        ("الپس یورپ کا ایک پہاڑی سلسلہ ہے۔", "en"),
        ("आल्प्स पर्वत", "en"),
        ("Der Transformer (注意機構) is described in detail below.", "en"),
        ("", "en"),
        ("123 - 456 %", "en"),
    ],
)
def test_language_of_a_text(text: str, language: str) -> None:
    assert dominant_language(text) == language


def test_a_foreign_front_page_does_not_decide() -> None:
    assert dominant_language("English cover page. " * 400 + "한국어 본문입니다. " * 20000) == "ko"


@settings(deadline=None)
@given(st.text())
def test_every_text_has_a_prompt_language(text: str) -> None:
    assert dominant_language(text) in ("en", "ko", "ja", "zh", "ar")
