"""Registries behind TLS, client certificates, mirrors and proxies; login and logout, with credential helpers."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from helpers.badregistry import QUICK, Handler, on, serving
from helpers.connectproxy import proxy
from helpers.wherry import COMMAND
from image_support import (
    Certificates,
    Image,
    entry,
    needs_root,
    real_registry,
    tar,
)
from wherry.engine.engine import Engine
from wherry.errors import Kind, WherryError
from wherry.image import auth, logins
from wherry.image.auth import Credentials, credentials_for
from wherry.image.hosts import Reach
from wherry.image.store import ImageStore
from wherry.model import Place

pytestmark = [pytest.mark.root, needs_root]


@pytest.fixture(scope="module")
def image():
    return Image(tar(entry("f", os.urandom(100_000))))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, and as `server` what it signed for a registry."""
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    made.server = made.sign("server", "IP:127.0.0.1,DNS:localhost,DNS:registry.test")
    return made


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Write hosts.d/HOST/hosts.toml."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))

    def write(host: str, text: str) -> None:
        (tmp_path / "hosts.d" / host).mkdir(parents=True, exist_ok=True)
        (tmp_path / "hosts.d" / host / "hosts.toml").write_text(text)

    return write


@pytest.fixture
def store(tmp_path, helper, image):
    """With the image in it."""
    store = ImageStore(str(tmp_path / "root"), helper=helper, hosts=str(tmp_path / "hosts.d"))
    store.load(f"oci:{image.layout(tmp_path / 'layout')}:latest")
    return store


def there_and_back(store: ImageStore, name: str) -> None:
    """Push, and pull into a store that has nothing."""
    (image,) = store.list()
    store.tag(image.id, name)
    list(store.push(name))
    fresh = ImageStore(store.root + "2", helper=store._helper, hosts=store._hosts)
    assert fresh.pull(name).manifest == image.manifest


def refused(store: ImageStore, name: str, words: str) -> WherryError:
    with pytest.raises(WherryError, match=words) as caught:
        store.pull(name)
    assert caught.value.kind is Kind.DENIED, caught.value
    return caught.value


# ---- TLS


def test_an_authority_of_its_own(tmp_path, store, settings, certificates):
    with real_registry(tmp_path / "r", tls=certificates.server) as address:
        error = refused(store, f"{address}/app:1", "certificate is not trusted")
        assert "hosts.toml" in error.hint
        settings(address, f'ca = "{certificates.bundle}"')
        there_and_back(store, f"{address}/app:1")
        settings(address, f'server = "https://{address}"\nskip_verify = true')
        there_and_back(store, f"{address}/two:1")
        settings(address, f'ca = "{certificates.place}/none.crt"')
        with pytest.raises(WherryError, match=r"cannot use the certificate authority .*No such file"):
            store.pull(f"{address}/app:1")


def test_docker_s_layout_of_certificates(tmp_path, store, certificates):
    client = certificates.sign("client-a")
    with real_registry(tmp_path / "r", tls=certificates.server, client_ca=certificates.bundle) as address:
        place = tmp_path / "hosts.d" / address
        place.mkdir(parents=True)
        for name, path in (("ca.crt", certificates.bundle), ("c.cert", client[0]), ("c.key", client[1])):
            (place / name).write_bytes(path.read_bytes())
        there_and_back(store, f"{address}/app:1")


def test_the_environment_s_authorities(tmp_path, store, certificates, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.bundle))
    with real_registry(tmp_path / "r", tls=certificates.server) as address:
        there_and_back(store, f"{address}/app:1")


def test_a_certificate_of_the_client(tmp_path, store, settings, certificates):
    strangers = Certificates(tmp_path / "strangers")
    mine, foreign = certificates.sign("client"), strangers.sign("client")
    both = tmp_path / "both.pem"
    both.write_bytes(mine[0].read_bytes() + mine[1].read_bytes())
    ca = f'ca = "{certificates.bundle}"\n'
    with real_registry(tmp_path / "r", tls=certificates.server, client_ca=certificates.bundle) as address:
        settings(address, ca)
        refused(store, f"{address}/app:1", "wants a client certificate")
        settings(address, ca + f'client = [["{foreign[0]}", "{foreign[1]}"]]')
        refused(store, f"{address}/app:1", "wants a client certificate")
        settings(address, ca + f'client = [["{mine[0]}", "{mine[1]}"]]')
        there_and_back(store, f"{address}/app:1")
        settings(address, ca + f'client = "{both}"')
        there_and_back(store, f"{address}/two:1")
        settings(address, ca + f'client = "{mine[0]}"')
        with pytest.raises(WherryError, match="cannot use the client certificate"):
            store.pull(f"{address}/app:1")


def test_a_key_that_is_encrypted_asks_nobody(tmp_path, store, settings, certificates):
    certificate, key = certificates.sign("client")
    locked = tmp_path / "locked.key"
    words = ["openssl", "pkcs8", "-topk8", "-in", key, "-out", locked, "-passout", "pass:x"]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    with real_registry(tmp_path / "r", tls=certificates.server, client_ca=certificates.bundle) as address:
        settings(address, f'ca = "{certificates.bundle}"\nclient = [["{certificate}", "{locked}"]]')
        with pytest.raises(WherryError, match="encrypted"):
            store.pull(f"{address}/app:1")


def test_another_name_than_the_certificate_s(tmp_path, store, settings, certificates):
    with real_registry(tmp_path / "r", tls=certificates.sign("elsewhere", "DNS:elsewhere.test")) as address:
        settings(address, f'ca = "{certificates.bundle}"')
        refused(store, f"{address}/app:1", "certificate is not trusted")


def test_a_plain_server_that_should_speak_tls(store, settings, image):
    with serving(image) as server:
        settings(server.address, f'server = "https://{server.address}"')
        with pytest.raises(WherryError, match="does not speak TLS") as caught:
            store.pull(f"{server.address}/a/b:1")
        assert caught.value.kind is Kind.UNAVAILABLE
        assert "http://" in caught.value.hint


@pytest.mark.parametrize("trusted", [True, False])
def test_what_is_set_for_a_registry_ends_at_a_redirect(store, settings, certificates, image, trusted):
    """Its certificate is shown to nobody else, and nobody else goes unverified."""
    mine, pair = certificates.sign("client"), certificates.server
    with serving(image, pair, certificates.bundle) as server, serving(image, pair, certificates.bundle) as other:
        server.rules.append(
            on("/blobs/", lambda h: h.reply(307, headers={"Location": f"https://{other.address}{h.path}"}))
        )
        trust = f'ca = "{certificates.bundle}"' if trusted else "skip_verify = true"
        settings(server.address, f'server = "https://{server.address}"\n{trust}\nclient = [["{mine[0]}", "{mine[1]}"]]')
        fresh = ImageStore(store.root + "2", helper=store._helper, hosts=store._hosts)
        if trusted:
            assert fresh.pull(f"{server.address}/a/b:1").names
            assert len(other.log) == 2
        else:
            refused(fresh, f"{server.address}/a/b:1", "certificate is not trusted")
            assert other.log == []
        assert len(server.shown) == len(server.log)
        assert other.shown == []


# ---- mirrors


def test_a_mirror_before_a_registry_that_is_gone(tmp_path, store, settings):
    """What was pushed to one address is pulled by the name of another, which answers no more."""
    with real_registry(tmp_path / "mirror") as mirror:
        store.tag(store.list()[0].id, f"{mirror}/app:1")
        list(store.push(f"{mirror}/app:1"))
        settings(
            "127.0.0.1:1",
            f'server = "http://127.0.0.1:1"\n[host."http://{mirror}"]\ncapabilities = ["pull", "resolve"]',
        )
        assert store.pull("127.0.0.1:1/app:1").names
        with pytest.raises(WherryError) as caught:
            list(store.push("127.0.0.1:1/app:1"))
        assert caught.value.kind is Kind.UNAVAILABLE, "a mirror that may not be pushed to was"


def test_default_settings_hold_for_all(tmp_path, store, settings):
    with real_registry(tmp_path / "mirror") as mirror:
        store.tag(store.list()[0].id, f"{mirror}/app:1")
        list(store.push(f"{mirror}/app:1"))
        settings("_default", f'[host."http://{mirror}"]\ncapabilities = ["pull", "resolve"]')
        assert store.pull("registry.invalid/app:1").names


# ---- proxies


def test_through_a_proxy(tmp_path, store, settings, certificates, monkeypatch):
    settings("registry.test", f'ca = "{certificates.bundle}"')
    with (
        real_registry(tmp_path / "r", tls=certificates.server) as address,
        proxy({"registry.test:443": address}) as way,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://{way.address}")
        there_and_back(store, "registry.test/app:1")
        assert set(way.asked) == {"registry.test:443"}
        monkeypatch.setenv("NO_PROXY", "registry.test")
        with pytest.raises(WherryError) as caught:
            store.pull("registry.test/app:1")
        assert caught.value.kind is Kind.UNAVAILABLE, "the name is known to the proxy alone"


def test_through_a_proxy_with_a_certificate_of_the_client(tmp_path, store, settings, certificates, monkeypatch):
    client = certificates.sign("client")
    settings("registry.test", f'ca = "{certificates.bundle}"\nclient = [["{client[0]}", "{client[1]}"]]')
    with (
        real_registry(tmp_path / "r", tls=certificates.server, client_ca=certificates.bundle) as address,
        proxy({"registry.test:443": address}) as way,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://{way.address}")
        there_and_back(store, "registry.test/app:1")


def test_a_proxy_that_wants_to_know_who(tmp_path, store, settings, certificates, monkeypatch):
    settings("registry.test", f'ca = "{certificates.bundle}"')
    secret = "Basic YW5uYTpzM2NyZXQ="
    with (
        real_registry(tmp_path / "r", tls=certificates.server) as address,
        proxy({"registry.test:443": address}, secret) as way,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://{way.address}")
        refused(store, "registry.test/app:1", "the proxy refuses")
        monkeypatch.setenv("HTTPS_PROXY", f"http://anna:s3cret@{way.address}")
        there_and_back(store, "registry.test/app:1")


def test_loopback_needs_no_proxy(tmp_path, store, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with real_registry(tmp_path / "r") as address:
        there_and_back(store, f"{address}/app:1")


def test_docker_io_and_its_token_server(store, settings, certificates, image, monkeypatch):
    """By the names that they have; the user's secret goes to auth.docker.io, and on to nobody."""
    pair = certificates.sign("hub", "DNS:registry-1.docker.io,DNS:auth.docker.io,DNS:cdn.example")
    settings("docker.io", f'ca = "{certificates.bundle}"')
    logins.store("docker.io", Credentials("anna", "s3cret"), os.environ)
    with serving(image, pair) as hub, serving(image, pair) as tokens, serving(image, pair) as storage:
        names = {"registry-1.docker.io": hub, "auth.docker.io": tokens, "cdn.example": storage}
        tokens.rules.append(on("/token", lambda h: h.reply(200, b'{"token":"abc","expires_in":300}')))
        realm = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io"'

        def guard(handler: Handler) -> bool:
            if handler.headers.get("Authorization") == "Bearer abc":
                return False
            return handler.reply(401, headers={"WWW-Authenticate": realm})

        hub.rules += [
            guard,
            on("/blobs/", lambda h: h.reply(307, headers={"Location": f"https://cdn.example{h.path}"})),
        ]
        with proxy({f"{name}:443": server.address for name, server in names.items()}) as way:
            monkeypatch.setenv("HTTPS_PROXY", f"http://{way.address}")
            fresh = ImageStore(store.root + "2", helper=store._helper, hosts=store._hosts)
            assert fresh.pull("app:1").names == ("docker.io/library/app:1",)
        (asked,) = tokens.log
        assert storage.requests("/blobs/")
        assert parse_qs(urlsplit(asked[1]).query)["scope"] == ["repository:library/app:pull"]
        assert asked[2]["Authorization"].startswith("Basic ")
        assert {headers.get("Authorization") for _, _, headers in hub.log} == {None, "Bearer abc"}
        assert not [headers for _, _, headers in storage.log if "Authorization" in headers]


# ---- login and logout


@pytest.fixture
def config(tmp_path, monkeypatch):
    """docker's config.json of this test's own user."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    return tmp_path / "docker/config.json"


@pytest.fixture
def engine(tmp_path):
    return Engine(Place(str(tmp_path / "root"), str(tmp_path / "state"), str(tmp_path / "wherry.toml")))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    with real_registry(tmp_path_factory.mktemp("guarded"), "anna", "s3cret") as address:
        yield address


def test_login_tries_before_it_keeps(engine, config, guarded, store):
    with pytest.raises(WherryError, match="incorrect username or password") as caught:
        engine.login(guarded, "anna", "wrong")
    assert caught.value.kind is Kind.DENIED
    assert not config.exists()
    assert engine.login(guarded, "anna", "s3cret") == str(config)
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert credentials_for(guarded) == Credentials("anna", "s3cret")
    assert engine.logins() == [guarded]
    assert engine.login_again(guarded) is True
    there_and_back(store, f"{guarded}/private/app:1")
    assert engine.logout(f"https://{guarded}/v2/") == (guarded, True)
    assert engine.logout(guarded) == (guarded, False)
    assert engine.login_again(guarded) is None
    assert refused(store, f"{guarded}/private/app:1", "denies access").hint.endswith(f"`wherry login {guarded}`")


def test_login_by_the_registry_s_name_where_it_is_elsewhere(tmp_path, settings, config, guarded, store):
    """`server` says where; a mirror before it never sees the secret."""
    name = "registry.invalid"
    with serving(Image(tar(entry("f", b"x")))) as mirror:
        mirror.rules.append(on("/v2/", lambda h: h.reply(401, headers={"WWW-Authenticate": 'Basic realm="x"'})))
        host = f'[host."http://{mirror.address}"]\ncapabilities = ["pull", "resolve"]'
        settings(name, f'server = "http://{guarded}"\n{host}')
        engine = Engine(Place(str(tmp_path / "root"), str(tmp_path / "state"), str(tmp_path / "wherry.toml")))
        engine.login(name, "anna", "s3cret")
        assert list(json.loads(config.read_text())["auths"]) == [name]
        assert mirror.log == []
        there_and_back(store, f"{name}/private/app:2")
        assert mirror.log
        assert not [headers for _, _, headers in mirror.log if "Authorization" in headers]


def test_docker_and_podman_understand_what_is_kept(engine, config, guarded, tmp_path):
    engine.login(guarded, "anna", "s3cret")
    words = ["skopeo", "list-tags", "--tls-verify=false", "--authfile", config, f"docker://{guarded}/private/app"]
    assert "unauthorized" not in subprocess.run(words, capture_output=True, text=True, check=False, timeout=60).stderr
    words = ["skopeo", "login", "--get-login", "--authfile", str(config), guarded]
    assert subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout == "anna\n"


def test_everything_else_in_the_file_stays(engine, config, guarded):
    config.parent.mkdir()
    real = config.with_name("dotfile.json")
    before = {"HttpHeaders": {"A": "b"}, "auths": {"other.example": {"auth": "eDp5"}}, "psFormat": "x", "plugins": {}}
    real.write_text(json.dumps(before))
    config.symlink_to(real)
    engine.login(guarded, "anna", "s3cret")
    after = json.loads(real.read_text())
    assert config.is_symlink()
    assert list(after) == list(before)
    assert after.pop("auths") == {"other.example": {"auth": "eDp5"}, guarded: {"auth": "YW5uYTpzM2NyZXQ="}}
    before.pop("auths")
    assert after == before
    engine.logout(guarded)
    assert json.loads(real.read_text())["auths"] == {"other.example": {"auth": "eDp5"}}


def test_many_logins_at_once_lose_none(config):
    names = [f"r{n}.example" for n in range(12)]
    threads = [threading.Thread(target=logins.store, args=(n, Credentials("u", n), os.environ)) for n in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert logins.known(os.environ) == sorted(names)
    assert sorted(os.listdir(config.parent)) == ["config.json"]


HELPER = """#!/usr/bin/env python3
import json, os, sys
path = os.environ["HELPER_STORE"]
have = json.load(open(path)) if os.path.exists(path) else {}
verb, text = sys.argv[1], sys.stdin.read().strip()
if verb == "store":
    entry = json.loads(text)
    have[entry["ServerURL"]] = entry
    json.dump(have, open(path, "w"))
elif verb == "get":
    if text not in have:
        sys.exit("credentials not found in native keychain")
    print(json.dumps(have[text]))
elif verb == "erase":
    have.pop(text, None)
    json.dump(have, open(path, "w"))
elif verb == "list":
    print(json.dumps({name: entry["Username"] for name, entry in have.items()}))
"""


@pytest.fixture
def keychain(tmp_path, monkeypatch, config):
    """A credential helper; its file."""
    del config
    program = tmp_path / "bin/docker-credential-test"
    program.parent.mkdir()
    program.write_text(HELPER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("HELPER_STORE", str(tmp_path / "keychain"))
    return tmp_path / "keychain"


@pytest.mark.parametrize("how", ["credsStore", "credHelpers"])
def test_credential_helpers(engine, guarded, keychain, store, how):
    config = Path(os.environ["DOCKER_CONFIG"], "config.json")
    config.parent.mkdir()
    config.write_text(json.dumps({how: "test" if how == "credsStore" else {guarded: "test"}}))
    assert engine.login(guarded, "anna", "s3cret") == "", "nothing is unencrypted"
    assert json.loads(config.read_text())["auths"] == {guarded: {}}
    assert json.loads(keychain.read_text())[guarded]["Secret"] == "s3cret"
    assert engine.logins() == [guarded]
    there_and_back(store, f"{guarded}/helped/app:1")
    assert engine.logout(guarded) == (guarded, True)
    assert json.loads(keychain.read_text()) == {}
    assert engine.logout(guarded) == (guarded, False)


def test_a_helper_that_is_not_there_or_talks_nonsense(engine, config, guarded, tmp_path, monkeypatch):
    config.parent.mkdir()
    config.write_text('{"credsStore": "missing"}')
    with pytest.raises(WherryError, match="docker-credential-missing is not installed"):
        engine.login(guarded, "anna", "s3cret")
    config.write_text('{"credsStore": "../x"}')
    with pytest.raises(WherryError, match="invalid credential helper"):
        engine.login(guarded, "anna", "s3cret")
    assert json.loads(config.read_text()) == {"credsStore": "../x"}


def test_the_hub_by_all_its_names(config):
    config.parent.mkdir()
    config.write_text('{"auths": {"index.docker.io": {"auth": "eDp5"}}}')
    logins.store(logins.registry_of(""), Credentials("anna", "s3cret"), os.environ)
    assert list(json.loads(config.read_text())["auths"]) == ["https://index.docker.io/v1/"]
    for name in ("docker.io", "https://index.docker.io/v1/", "registry-1.docker.io", "index.docker.io", ""):
        assert logins.registry_of(name) == "docker.io"
    assert auth.credentials_for("docker.io") == Credentials("anna", "s3cret")
    for wrong in ("nodots", "a b.example", "x.example:port", "http://"):
        with pytest.raises(WherryError, match="invalid registry"):
            logins.registry_of(wrong)


def test_identity_tokens(config, image, monkeypatch):
    """A token server that gives one for the password: the password is not kept."""
    monkeypatch.setattr(ImageStore, "reach", Reach(patience=QUICK))
    with serving(image) as server:
        asked: list[dict[str, list[str]]] = []

        def token(handler: Handler) -> None:
            if handler.command == "POST":
                asked.append(parse_qs(handler.body().decode()))
                handler.reply(200, b'{"access_token":"abc"}')
            else:
                asked.append(parse_qs(urlsplit(handler.path).query))
                handler.reply(200, b'{"token":"abc","refresh_token":"for-later"}')

        def guard(handler: Handler) -> bool:
            if handler.headers.get("Authorization") == "Bearer abc":
                return False
            realm = f'Bearer realm="http://{server.address}/token",service="reg"'
            return handler.reply(401, headers={"WWW-Authenticate": realm})

        server.rules += [on("/token", token), guard]
        reach = Reach(patience=QUICK)
        found = logins.verify(server.address, Credentials("anna", "s3cret"), reach)
        assert found == Credentials("anna", "for-later", identity=True)
        assert asked[0]["offline_token"] == ["true"]
        assert "scope" not in asked[0]
        logins.store(server.address, found, os.environ)
        assert b"s3cret" not in config.read_bytes()
        assert json.loads(config.read_text())["auths"][server.address]["identitytoken"] == "for-later"
        assert logins.verify(server.address, credentials_for(server.address), reach).identity
        assert asked[-1]["refresh_token"] == ["for-later"]


def test_a_foreign_realm_gets_no_password(config, image):
    with serving(image) as server, serving(image) as other:
        realm = f'Bearer realm="http://localhost:{other.server_port}/token"'
        server.rules.append(on("/v2/", lambda h: h.reply(401, headers={"WWW-Authenticate": realm})))
        with pytest.raises(WherryError, match="may not see their credentials"):
            logins.verify(server.address, Credentials("anna", "s3cret"), Reach(patience=QUICK))
        assert other.log == []


def test_no_registry_there(config, engine):
    with pytest.raises(WherryError) as caught:
        engine.login("127.0.0.1:1", "a", "b")
    assert caught.value.kind is Kind.UNAVAILABLE


# ---- referrers


@pytest.mark.parametrize("how", ["api", "tag", "none"])
def test_referrers(store, image, how, monkeypatch):
    monkeypatch.setattr(ImageStore, "reach", Reach(patience=QUICK))
    digest = image.descriptor["digest"]
    rows = [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:" + c * 64, "size": 7,
             "artifactType": f"application/{c}"} for c in "ab"]  # fmt: skip
    kind = {"Content-Type": "application/vnd.oci.image.index.v1+json"}
    index = json.dumps({"schemaVersion": 2, "mediaType": kind["Content-Type"], "manifests": rows}).encode()
    with serving(image) as server:
        path = {"api": f"/referrers/{digest}", "tag": f"/manifests/{digest.replace(':', '-')}", "none": "/nowhere"}[how]
        server.rules.append(on(path, lambda h: h.reply(200, index, kind)))
        found = store.referrers(f"{server.address}/a/b:1")
        assert [row["artifactType"] for row in found] == ([] if how == "none" else ["application/a", "application/b"])
        assert len(store.referrers(f"{server.address}/a/b:1", "application/b")) == (how != "none")


# ---- the commands


def run(tmp_path: Path, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    places = {"WHERRY_ROOT": "root", "WHERRY_STATE": "state", "WHERRY_CONFIG": "wherry.toml", "DOCKER_CONFIG": "docker"}
    env = {**os.environ, **{key: str(tmp_path / value) for key, value in places.items()}}
    return subprocess.run(
        [*COMMAND, *words], env=env, input=stdin, capture_output=True, text=True, check=False, timeout=60
    )


def test_commands_of_login(tmp_path, guarded):
    done = run(tmp_path, "login", "-u", "anna", "--password-stdin", guarded, stdin="s3cret\n")
    assert (done.returncode, done.stdout) == (0, "Login Succeeded\n")
    assert "stored unencrypted in" in done.stderr
    assert run(tmp_path, "login", guarded).stdout == "Authenticating with existing credentials...\nLogin Succeeded\n"
    assert run(tmp_path, "logout", guarded).stdout == f"Removing login credentials for {guarded}\n"
    assert run(tmp_path, "logout", guarded).stdout == f"Not logged in to {guarded}\n"
    done = run(tmp_path, "login", "-u", "anna", "-p", "s3cret", guarded)
    assert done.stderr.startswith("WARNING! Using --password via the CLI is insecure. Use --password-stdin.\n")
    assert run(tmp_path, "logout", "--all").stdout == f"Removing login credentials for {guarded}\n"
    for words, stdin, said in [
        (("--password-stdin",), "x", "Must provide --username with --password-stdin"),
        (("-u", "a", "-p", "b", "--password-stdin"), "x", "mutually exclusive"),
        (("-u", "a", "--password-stdin"), "\n", "password is empty"),
        ((), "", "Cannot perform an interactive login from a non TTY device"),
        (("-u", "anna", "--password-stdin"), "wrong", "incorrect username or password"),
    ]:
        done = run(tmp_path, "login", *words, guarded, stdin=stdin)
        assert done.returncode == 1
        assert said in done.stderr


def test_a_password_from_the_terminal_is_not_shown(tmp_path, guarded):
    env = {**os.environ, "DOCKER_CONFIG": str(tmp_path / "docker"), "WHERRY_CONFIG": str(tmp_path / "wherry.toml")}
    env |= {"WHERRY_ROOT": str(tmp_path / "root"), "WHERRY_STATE": str(tmp_path / "state")}
    pid, fd = pty.fork()
    if pid == 0:
        os.execvpe(COMMAND[0], [*COMMAND, "login", guarded], env)
    seen = b""
    for prompt, answer in ((b"Username: ", b"anna\n"), (b"Password: ", b"s3cret\n"), (b"Login Succeeded", b"")):
        deadline = time.monotonic() + 30
        while prompt not in seen and time.monotonic() < deadline:
            seen += os.read(fd, 1000)
        assert prompt in seen
        time.sleep(0.2)  # getpass drops what was typed before it asks
        os.write(fd, answer)
    os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"s3cret" not in seen
    assert (tmp_path / "docker/config.json").exists()


def test_hosts_d_is_beside_the_settings(tmp_path, settings, image, store):
    with real_registry(tmp_path / "mirror") as mirror:
        store.tag(store.list()[0].id, f"{mirror}/app:1")
        list(store.push(f"{mirror}/app:1"))
        settings("registry.invalid", f'[host."http://{mirror}"]\ncapabilities = ["pull", "resolve"]')
        done = run(tmp_path, "--root", str(tmp_path / "other"), "pull", "-q", "registry.invalid/app:1")
        assert done.stdout == "registry.invalid/app:1\n", done.stderr
        settings("registry.invalid", "server = 5")
        done = run(tmp_path, "pull", "registry.invalid/app:1")
        assert (done.returncode, "hosts.toml" in done.stderr) == (1, True)


def test_the_command_of_push(tmp_path, image, guarded):
    layout = image.layout(tmp_path / "layout")
    run(tmp_path, "login", "-u", "anna", "--password-stdin", guarded, stdin="s3cret\n")
    run(tmp_path, "load", f"oci:{layout}:latest")
    run(tmp_path, "tag", image.config["digest"][7:], f"{guarded}/by/command")
    key = image.layers[0]["digest"][7:19]
    done = run(tmp_path, "push", f"{guarded}/by/command")
    size = len(image.manifest)
    assert done.stdout == (
        f"Using default tag: latest\nThe push refers to repository [{guarded}/by/command]\n"
        f"latest: digest: {image.descriptor['digest']} size: {size}\n"
    )
    assert [line for line in done.stderr.splitlines() if "Pushing" not in line] == [
        f"{key}: Preparing",
        f"{key}: Pushed",
    ]
    assert f"{key}: Layer already exists" in run(tmp_path, "image", "push", f"{guarded}/by/command:latest").stderr
    done = run(tmp_path, "push", "-q", "-a", f"{guarded}/by/command")
    assert (done.stdout, done.stderr) == (f"{guarded}/by/command:latest\n", "")
    done = run(tmp_path, "push", "-a", f"{guarded}/by/command:latest")
    assert (done.returncode, "tag can't be used with --all-tags/-a" in done.stderr) == (1, True)
    done = run(tmp_path, "push", f"{guarded}/by/nobody")
    assert (done.returncode, "does not exist locally with the tag" in done.stderr) == (1, True)
