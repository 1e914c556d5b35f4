"""What others wrote is shown as it stands, wherever it is shown."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys

import pytest

from finepruner_lmms import output

HOSTILE = "=[red]x[/red]\x1b[31m\x9b2J\u202e<script>&lt;\\input{/etc/passwd}$_a_$|`c`:smile:\r\n## forged\u2028\x00%#~^"


def test_a_line_has_nothing_that_moves_a_terminal_or_forges_another_line():
    shown = output.plain(HOSTILE)
    assert shown.isprintable() and "\\x1b[31m\\x9b2J\\u202e" in shown and "\\r\\n## forged\\u2028\\x00" in shown
    assert output.one_line("a:\n  log: x\n\u2028") == "a:; log: x"
    assert output.plain("né ± 1 – 你好") == "né ± 1 – 你好"
    assert output.plain("\udc80") == "\\udc80"
    assert len(output.plain("x" * 10**6)) < 2100 and output.plain("x" * 10**6).endswith("(1000000 characters)")


def test_markdown_is_rendered_as_the_text_itself():
    assert output.markdown("a|b") == "a\\|b"
    assert output.markdown("head_strategy=top_k 25 % (2 seeds)") == "head_strategy=top_k 25 % (2 seeds)"
    assert output.markdown("_a_ *b* `c` [d](e) <i> &lt; $x$ ~s~") == (
        "\\_a\\_ \\*b\\* \\`c\\` \\[d\\](e) \\<i\\> \\&lt; \\$x\\$ \\~s\\~"
    )
    assert "http://" not in output.markdown("http://x.example") and "\n" not in output.markdown(HOSTILE)


def test_latex_keeps_no_character_that_tex_acts_on():
    shown = output.latex("\\input{x} 5% of $a_b^c$ & #1 ~")
    assert shown == (
        "\\textbackslash{}input\\{x\\} 5\\% of \\$a\\_b\\textasciicircum{}c\\$ \\& \\#1 \\textasciitilde{}"
    )
    assert output.latex("1 ± 2 –") == r"1 $\pm$ 2 --"


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-cmd", "@SUM(A1)", " =1", "＝1", "\u00a0=1"])
def test_a_spreadsheet_runs_no_text(text):
    assert output.csv_cell(text).startswith("'")


@pytest.mark.parametrize("value", [1, -1.5, None, True, "-1.5", "+3e-4", "a=1", "–", ""])
def test_a_number_stays_one_in_a_spreadsheet(value):
    assert output.csv_cell(value) == value


def test_a_csv_file_reads_back_in_one_row():
    file = io.StringIO()
    csv.writer(file).writerow([output.csv_cell(HOSTILE), output.csv_cell("\t=1"), output.csv_cell("\r@x")])
    assert len(list(csv.reader(io.StringIO(file.getvalue())))) == 1
    assert all(not line.startswith(("=", "@", "\t")) for line in file.getvalue().splitlines())


def test_html_holds_no_tag_and_leaves_no_attribute():
    assert output.html("<b a='\"'>&") == "&lt;b a=&#x27;&quot;&#x27;&gt;&amp;"


def test_matplotlib_shows_dollars_and_leading_underscores():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import cbook
    from matplotlib import pyplot as plt

    for text in ("$x$", r"\$x$", "$$", HOSTILE):
        assert not cbook.is_math_text(output.mathtext(text))
    figure, axes = plt.subplots()
    axes.plot([1], [1], label=output.mathtext("_hidden $\\frac{$"))
    axes.legend()
    figure.canvas.draw()
    assert axes.get_legend().get_texts()[0].get_text() == r" _hidden \$\frac{\$"
    plt.close(figure)


def test_rich_reads_neither_markup_nor_smileys():
    file = io.StringIO()
    output.say(output.console(file), HOSTILE)
    assert file.getvalue() == f"{output.one_line(HOSTILE)}\n"


def test_a_log_shows_messages_as_they_stand():
    code = "import sys; from loguru import logger; from finepruner_lmms.output import log_plainly; log_plainly()\n"
    code += "logger.remove(); logger.add(sys.stdout, format='{message}'); logger.info('a\\x1b[2J\\n{}', '<b>')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "a\\x1b[2J\n<b>\n"


def test_a_reader_that_goes_away_is_an_error_and_not_the_end_of_the_process():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        output.say(output.console(Closed()), "x")


@pytest.mark.parametrize("encoding, shown", [("ascii", "+- - \\u4f60 \\udc80"), ("latin-1", "± - \\u4f60 \\udc80")])
def test_any_text_can_be_written_to_any_terminal(encoding, shown):
    code = "from finepruner_lmms import output; output.make_streams_robust(); print('± – 你 \\udc80')"
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert done.stdout.decode(encoding) == f"{shown}\n"
