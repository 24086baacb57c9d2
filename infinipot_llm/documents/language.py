"""The language to prompt a model in, told from the scripts a text is written in."""

from __future__ import annotations

import re

_SAMPLES = 16
_SAMPLE_CHARACTERS = 1000

_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")
_HIRAGANA = re.compile("[\u3041-\u309f]")
_KANA = re.compile("[\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f]")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_ARABIC = re.compile("[\u0620-\u064a\u066e-\u06d3\u0750-\u077f]")
_OTHER = re.compile("[^\\W\\d_\u0620-\u064a\u066e-\u06d3\u0750-\u077f\u1100-\u11ff\u3041-\u9fff\uac00-\ud7af]")

# Letters of Persian and Urdu that Arabic does not have; they make up a tenth or more of a Persian text.
_NOT_ARABIC = re.compile("[\u0679\u067e\u0686\u0688\u0691\u0698\u06a9\u06af\u06ba\u06be\u06c1\u06cc\u06d2]")

_LETTERS_PER_HAN = 3
"""A Chinese character or a Korean syllable says about as much as this many letters."""


def dominant_language(text: str) -> str:
    """Tell which of the prompt languages suits a text.

    A sample spread over the whole text is counted by script: Hangul is Korean, kana Japanese, Chinese characters
    without kana Chinese, and Arabic letters Arabic (unless their spelling is Persian or Urdu). Every other script,
    Latin and Cyrillic among them, and a text without letters give English.

    Args:
        text: The text of a document or a question.

    Returns:
        "en", "ko", "ja", "zh" or "ar".
    """
    sample = _sample(text)
    hangul, kana, han, arabic, other = (_count(script, sample) for script in (_HANGUL, _KANA, _HAN, _ARABIC, _OTHER))
    east_asian = hangul + kana + han
    if east_asian * _LETTERS_PER_HAN > max(arabic, other):
        if hangul >= max(kana, han / 4):
            return "ko"
        # Japanese grammar is written in hiragana; the Japanese names in a Chinese text are mostly katakana.
        return "ja" if kana > han or _count(_HIRAGANA, sample) > 0.05 * (kana + han) else "zh"
    if arabic > other and _count(_NOT_ARABIC, sample) <= 0.05 * arabic:
        return "ar"
    return "en"


def _sample(text: str) -> str:
    """Take stretches at even distances, so that a foreign title page or appendix does not decide."""
    if len(text) <= _SAMPLES * _SAMPLE_CHARACTERS:
        return text
    distance = len(text) // _SAMPLES
    return "".join(text[i * distance : i * distance + _SAMPLE_CHARACTERS] for i in range(_SAMPLES))


def _count(script: re.Pattern[str], sample: str) -> int:
    return len(script.findall(sample))
