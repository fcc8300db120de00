from fg_ssl_zoo.ops.tables import columns, markdown_table


def test_words_stand_left_and_numbers_right_in_markdown():
    table = markdown_table(["", "of", "kNN"], [["a", "b", "1"], ["c", "d", "22"]], words=2)
    assert table == "|  | of | kNN |\n|---|---|---:|\n| a | b | 1 |\n| c | d | 22 |"


def test_the_rule_of_cards_has_spaces():
    table = markdown_table(["", "kNN"], [["a", "1"]], spaced=True)
    assert table.splitlines()[1] == "| --- | ---: |"


def test_columns_are_as_wide_as_their_longest_cell():
    rows = [["a", "b", "c"], ["long", "1", ""]]
    assert columns(rows) == ["a     b  c", "long  1"]
    assert columns(rows, numbers=True) == ["a     b  c", "long  1"]
    assert columns([["a", "22"], ["b", "1"]], numbers=True) == ["a  22", "b   1"]
