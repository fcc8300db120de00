"""Uploads over sockets, by the unmodified client: what arrives opens, nothing is sent twice."""

import json
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import huggingface_hub.utils._http as client_http
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from fg_ssl_zoo.cli import main
from fg_ssl_zoo.config import load_recipe
from fg_ssl_zoo.hub.checks import check
from fg_ssl_zoo.hub.push import push, target_repo
from fg_ssl_zoo.hub.release import release
from tests.hub_server import TOKEN, Hub, client_environment, point_client_at
from tests.tiny_zoo import NAME, RECIPE, exported, recipe_of, registered

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's
MINE = f"tester/{NAME}"


@pytest.fixture(scope="module", autouse=True)
def tiny_name(tmp_path_factory):
    yield from registered({NAME: RECIPE}, tmp_path_factory.mktemp("recipes"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with its export and that of a companion."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    exported(folder / "export")
    other = recipe_of(name=f"{NAME}_discriminator")
    exported(folder / "export_discriminator", other, companion="discriminator")
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with Hub() as server:
        point_client_at(server.url, tmp_path / "cache", monkeypatch)
        monkeypatch.setattr(client_http.time, "sleep", lambda seconds: None)  # between its retries
        yield server


def sent(hub, verb="PUT"):
    return [path for made, path in hub.log if made == verb]


OPEN = """
import re, sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny_zoo import NAME, RECIPE, register, write_recipes

place, printed = Path(sys.argv[1]), sys.argv[2]
register(write_recipes(place / "recipes", {NAME: RECIPE}), pytest.MonkeyPatch())
exec("\\n".join(re.findall(r"^(?:import|from) .*", printed, re.MULTILINE)))
expected = load_file(place / "expected.safetensors")
for line in re.findall(r"^(?:timm|AutoModel)\\..*", printed, re.MULTILINE):
    with torch.no_grad():
        found = eval(line).eval()(expected["pixels"])
    found = getattr(found, "pooler_output", found)
    torch.testing.assert_close(found, expected["features"], rtol=0, atol=0)
    print("opened by", line.partition("(")[0])
"""


@pytest.mark.slow
def test_the_three_printed_lines_open_what_was_uploaded(run, hub, tmp_path, capsys):
    main(["publish", str(run), "--org", "tester"])
    printed = capsys.readouterr().out
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = check(run).backbone(pixels).contiguous()
    save_file({"pixels": pixels, "features": features}, tmp_path / "expected.safetensors")
    environment = client_environment(hub.url, tmp_path / "other")
    result = subprocess.run(
        [sys.executable, "-c", OPEN, str(tmp_path), printed],
        cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True,
    )  # fmt: skip
    opened = ["timm.create_model", "timm.create_model", "AutoModel.from_pretrained"]
    assert result.stdout.splitlines() == [f"opened by {name}" for name in opened], result.stderr
    assert f'pretrained_cfg_overlay=dict(hf_hub_id="{MINE}")' in printed


def test_the_same_content_makes_no_second_commit_and_is_not_sent_again(run, hub, capsys):
    main(["publish", str(run), "--org", "tester"])
    commits = len(hub.repos[MINE].commits)
    first = capsys.readouterr().out
    commit = hub.repos[MINE].commits[-1].sha
    assert f"{MINE}: published" in first
    assert commit in first
    puts = len(sent(hub))
    main(["publish", str(run), "--org", "tester"])
    assert f"nothing has changed since commit {commit}" in capsys.readouterr().out
    assert (len(hub.repos[MINE].commits), len(sent(hub))) == (commits, puts)
    assert commits == 2  # the empty one, and ours: one commit for the whole folder


def test_the_card_and_recipe_name_the_repository_that_they_lie_in(run, hub):
    push(check(run), "someone/else")
    files = hub.repos["someone/else"].commits[-1].files
    assert set(files) == {
        "README.md", "config.json", "model.safetensors", "recipe.yaml", "results.json"
    }  # fmt: skip
    card = files["README.md"].decode()
    assert 'timm.create_model("hf-hub:someone/else", pretrained=True)' in card
    assert (
        f'"{NAME}", pretrained=True, pretrained_cfg_overlay=dict(hf_hub_id="someone/else")' in card
    )
    assert "fg-ssl-zoo/fgssl" not in card
    assert ModelCard(card).data.license == "cc-by-nc-4.0"
    assert b"repo: someone/else" in files["recipe.yaml"]


def test_a_card_that_was_edited_by_hand_is_kept(run, hub, tmp_path):
    folder = shutil.copytree(run / "export", tmp_path / "mine")
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nThanks to all who photographed.\n")
    push(check(folder), "someone/else")
    uploaded = hub.repos["someone/else"].commits[-1].files["README.md"].decode()
    assert "Thanks to all" in uploaded
    assert "hf-hub:someone/else" in uploaded


@pytest.mark.slow
def test_several_folders_are_the_whole_zoo_and_all_are_checked_before_any_is_sent(
    run, hub, tmp_path, capsys
):
    folders = [str(run / "export"), str(run / "export_discriminator")]
    main(["publish", *folders, "--org", "me"])
    assert set(hub.repos) == {f"me/{NAME}", f"me/{NAME}_discriminator"}
    unnamed = f'fg_ssl_zoo.load("hf-hub:me/{NAME}_discriminator")'
    assert unnamed in capsys.readouterr().out  # no recipe of ours has this name
    broken = shutil.copytree(run / "export", tmp_path / "broken")
    (broken / "results.json").write_text("{}")
    before = len(hub.log)
    for words, message in (
        ([*folders, str(broken), "--org", "me"], "lacks the protocol"),
        ([folders[0], folders[0], "--org", "me"], "two folders would go to"),
        ([*folders, "--repo", "me/x"], "--repo names one repository"),
        ([folders[0], "--repo", "x"], "OWNER/NAME is needed"),
        ([folders[0], "--repo", "me/my birds"], "error: --repo: Repo id must"),
        ([folders[0], "--org", ""], "error: an argument is empty (behind --org)"),
        (
            [folders[0], str(run / "exprot"), "--org", "me"],
            f"{run / 'exprot'}, as there is no such",
        ),
        ([folders[0], "--repo", "../x/y"], "Repo id must"),
        ([folders[0], "--org", "a/../b"], "Repo id must"),
    ):
        with pytest.raises(SystemExit):
            main(["publish", *words])
        assert message in capsys.readouterr().err
    assert len(hub.log) == before


def test_a_dry_run_sends_nothing(run, hub, capsys):
    main(["publish", str(run), "--dry-run"])
    assert f"fg-ssl-zoo/{NAME}: would be published, 5 files" in capsys.readouterr().out
    assert hub.log == []


def test_where_it_goes_follows_the_words_then_the_recipe_then_the_organisation(run, monkeypatch):
    found = check(run)
    assert target_repo(found) == f"fg-ssl-zoo/{NAME}"
    monkeypatch.setenv("FG_SSL_ZOO_ORG", "us")
    assert target_repo(found) == f"us/{NAME}"
    assert target_repo(found, org="me") == f"me/{NAME}"
    assert target_repo(found, "me/x") == "me/x"


@pytest.mark.slow
def test_a_private_model_stays_private(run, hub, capsys):
    main(["publish", str(run), "--org", "me", "--private"])
    assert hub.repos[f"me/{NAME}"].private
    main(["publish", str(run), "--org", "you"])
    with pytest.raises(SystemExit):
        main(["publish", str(run), "--org", "you", "--private"])
    assert "is public; --private" in capsys.readouterr().err


# --------------------------------------------------------------------------- what goes wrong


def test_one_broken_connection_and_one_500_are_repeated_by_the_client(run, hub):
    hub.fail("PUT", "/lfs/")
    hub.fail("PUT", "/lfs/", 500)
    hub.fail("POST", "/preupload/")
    assert push(check(run), MINE).is_new


@pytest.mark.slow
def test_an_upload_that_broke_off_goes_on_without_sending_again(run, hub, capsys):
    hub.fail("PUT", "/lfs/", times=20)
    with pytest.raises(SystemExit) as stopped:
        main(["publish", str(run), "--org", "tester"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert f"the upload to {MINE} broke off" in error
    assert "the same command goes on where it stopped" in error
    assert not hub.repos[MINE].commits[-1].files  # nothing half
    hub.faults.clear()
    hub.fail("POST", "/commit/", 500, times=20)  # weights arrive, the commit does not
    with pytest.raises(SystemExit):
        main(["publish", str(run), "--org", "tester"])
    hub.faults.clear()
    assert len(hub.blobs) == 1
    before = len(sent(hub))
    main(["publish", str(run), "--org", "tester"])
    assert len(sent(hub)) == before
    assert set(hub.repos[MINE].commits[-1].files) >= {"model.safetensors", "README.md"}


@pytest.mark.parametrize("token", ["hf_wrongwrongwrongwrongwrongwrongwrong", ""])
def test_a_wrong_or_missing_token_is_explained_and_never_shown(
    run, hub, tmp_path, monkeypatch, capsys, caplog, token
):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no_token"))
    with pytest.raises(SystemExit):
        main(["publish", str(run), "--org", "tester"])
    told = capsys.readouterr()
    assert "a token that may write for tester is needed" in told.err
    assert "hf_w" not in told.out + told.err + caplog.text
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"hf_w" not in path.read_bytes()


def test_the_organisation_of_somebody_else_is_explained(run, hub, capsys):
    hub.fail("POST", "/api/repos/create", 403)
    with pytest.raises(SystemExit):
        main(["publish", str(run), "--org", "google"])
    told = capsys.readouterr().err
    assert "refuses the upload to google/" in told
    assert "may write for google is needed" in told
    assert "--org names another owner" in told


def test_no_token_reaches_what_is_uploaded(run, hub):
    push(check(run), MINE)
    assert all(TOKEN.encode() not in data for data in hub.repos[MINE].commits[-1].files.values())


def test_without_network_the_upload_says_so(run, tmp_path, monkeypatch, capsys):
    with Hub() as gone:
        pass
    point_client_at(gone.url, tmp_path, monkeypatch)
    monkeypatch.setattr(client_http.time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit):
        main(["publish", str(run), "--org", "tester"])
    told = capsys.readouterr().err
    assert f"broke off ({gone.url}, ConnectError" in told


# --------------------------------------------------------------------------- released folders


def test_a_released_folder_is_uploaded_whole_under_the_hash_of_its_recipe(run, hub, tmp_path):
    folder = release(run, tmp_path / "published", largest_file=300_000)
    assert not (folder / "model.safetensors").exists()
    push(check(folder), MINE)
    files = hub.repos[MINE].commits[-1].files
    assert "model.safetensors" in files
    assert not any("-of-" in name for name in files)
    wanted = load_recipe(folder / "recipe.yaml").hub.sha256
    assert sha256(files["model.safetensors"]).hexdigest() == wanted
    assert json.loads(files["results.json"])["released"]["precision"] == "float16"
    assert "stored in half precision" in " ".join(files["README.md"].decode().split())
