import subprocess
import sys


def test_nothing_is_loaded_until_used() -> None:
    code = (
        "import sys, isonomy.plugins as p; assert 'Pii' in dir(p)\n"
        "heavy = {'re2', 'phonenumbers', 'stdnum', 'isonomy.plugins.patterns'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from isonomy.plugins import Length, Patterns\n"
        "assert 'phonenumbers' not in sys.modules\n"
        "p.Pii(kinds=('email', 'ip')); assert 'phonenumbers' not in sys.modules\n"
        "p.Pii(); assert 'phonenumbers' in sys.modules\n"
        "try: p.Pij\n"
        "except AttributeError as e: print(e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "no attribute 'Pij'" in done.stdout


def test_a_missing_package_is_named_with_what_to_install() -> None:
    code = (
        "import sys\n"
        "sys.modules.update(phonenumbers=None, stdnum=None)\n"
        "from isonomy.plugins import Pii\n"
        "from isonomy.sdk import MissingExtra\n"
        "assert Pii(kinds=('email', 'ip')).judge('a@b.org').name == 'replace'\n"
        "for kind, package in (('phone', 'phonenumbers'), ('card', 'python-stdnum')):\n"
        "    try: Pii(kinds=(kind,))\n"
        "    except MissingExtra as e: print(e.missing, e.extra, e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("phonenumbers pii ")
    assert second.startswith("python-stdnum pii ")
    assert "pip install 'isonomy[pii]'" in first
