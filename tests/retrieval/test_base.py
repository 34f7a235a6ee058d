from llds_core.retrieval.base import Hit, format_hits


def test_hits_are_shown_in_the_document_format_of_search_r1():
    hits = [Hit("1", "Homs", "A city in Syria.", 2.0), Hit("2", 'The "X"', "Two\nlines.", 1.0)]
    expected = 'Doc 1(Title: Homs) A city in Syria.\nDoc 2(Title: The "X") Two\nlines.\n'
    assert format_hits(hits) == expected


def test_no_hits_show_nothing():
    assert format_hits([]) == ""


def test_contents_are_those_of_the_retrieval_protocol():
    assert Hit("1", "Homs", "A city.", 0.5).contents == '"Homs"\nA city.'
