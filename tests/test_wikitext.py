"""Articles of WikiText with its spacing, and as people write."""

import re

import pytest

from benchmarks.wikitext import articles, as_written

RAW = """ = Orrery ( film ) =\x20
 The fair 's well @-@ known show drew 1 @,@ 250 ( and 3 @.@ 5 tonnes ) ; it cost $ 40 , 12 % .\x20
 = = Career = =\x20
 She said " no " , and " yes , then " : who hadn 't ?\x20
 = Second =\x20
 = = = Deep = = =\x20
 Text .\x20
"""


def test_spacing_is_undone(tmp_path):
    file = tmp_path / "wiki.raw"
    file.write_text(RAW, encoding="utf-8")
    one, two = articles(file, unspaced=True)
    assert one.text == (
        "Orrery (film)\n\n"
        "The fair's well-known show drew 1,250 (and 3.5 tonnes); it cost $40, 12%.\n\n"
        "Career\n\n"
        'She said "no", and "yes, then": who hadn\'t?'
    )
    assert two.text == "Second\n\nDeep\n\nText."
    raw = articles(file)
    cut = RAW.index(" = Second")
    assert [x.text for x in raw] == [RAW[:cut].strip(), RAW[cut:].strip()]
    assert [(x.index, x.title) for x in raw] == [(x.index, x.title) for x in (one, two)]


@pytest.mark.parametrize("text", ["", "Nothing to undo, (here) it's 3.5%.", 'A "b" c\'s d-e'])
def test_what_is_written_already_stays(text):
    assert as_written(text) == text


def test_nothing_but_spacing_and_marks_of_headings_is_changed():
    def letters(text):
        return re.sub(r"[\s@=]", "", text)

    assert letters(as_written(RAW)) == letters(RAW)
