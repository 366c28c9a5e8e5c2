"""docs/cli.md, made from the commands themselves: `python -m wherry.cli.manual > docs/cli.md`. A test keeps it true."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from .clicks import Lazy, Verb
from .menu import Entry
from .tree import ROOT

HEAD = """\
# wherry(1): the command line

This page is made from the commands by `python -m wherry.cli.manual > docs/cli.md`; `wherry COMMAND --help` prints the
same. Names, flags and output are docker's wherever docker has them.

    wherry [--root PATH] [--state PATH] [--config PATH] [--debug] COMMAND [ARG...]

| global option | environment | default (root) | what lies there |
| --- | --- | --- | --- |
| `--root` | `WHERRY_ROOT` | `/var/lib/wherry` | images, volumes, networks, containers |
| `--state` | `WHERRY_STATE` | `/run/wherry` | what runs; gone with a reboot |
| `--config` | `WHERRY_CONFIG` | `/etc/wherry/wherry.toml` | settings |

Another user's defaults are below the XDG directories. Several wherrys with different places live side by side.
`--debug` prints a traceback with each failure.

## Failures and exit codes

A failure is a sentence on standard error, `wherry: what failed, on what, why`, and where there is something to do a
second line, `  hint: ...`. Commands on several objects do what can be done and report each failure.

| code | meaning |
| --- | --- |
| 125 | the command line is wrong, or `run` itself failed |
| 126, 127 | the container's command cannot be executed; was not found |
| 128+N | the container's process died of signal N; 130 and 141 are also our own ctrl-c and broken pipe |
| 1 | any other failure; `run`, `start -a`, `attach` and `exec` otherwise end with the process's code |

## Values

| value | what may be written |
| --- | --- |
| SIZE | `512`, `64k`, `10m`, `1.5g`; powers of 1024 |
| DURATION | `300ms`, `10s`, `1m30s`, `1h2m3s` |
| TIME (`--since`, `--until`) | a DURATION before now, `2026-01-31`, `2026-01-31T10:00:00Z`, Unix seconds |
| `-p` | `[IP:][HOST[-HOST]:]CONTAINER[-CONTAINER][/tcp, /udp or /sctp]`; no HOST: a free port; IPv6 in brackets |
| `-v` | `[HOST-PATH or VOLUME:]PATH[:OPTIONS]`; a missing host directory is made |
| `--mount` | `type=bind`, `volume` or `tmpfs`, then `source=`, `target=`, `readonly`, `bind-propagation=`, \
`relabel=`, `volume-nocopy`, `volume-driver=`, `volume-opt=KEY=VALUE` (repeatable), \
`tmpfs-size=`, `tmpfs-mode=`; a missing source is an error |
| `--network` | a name, `none`, `host`, `container:NAME`; or `NETWORK:KEY=VALUE,...`, or docker's \
`name=NETWORK,KEY=VALUE,...`, with `alias`, `ip`, `ip6`, `mac-address`, `driver-opt`, \
`gw-priority`; repeatable ([rules](networks.md)) |
| switches | `--rm`, `--rm=true`, `--rm=false`, and clusters such as `-itd` |

A value that cannot be used is answered with the flag, the value and what is allowed.

## Terminals

With `-t` and `-i` the terminal is raw while the process is in the foreground: every key goes through, ctrl-c too. The
process follows the window's size. `ctrl-p ctrl-q` detaches (`--detach-keys` changes that) and leaves the process
running. The terminal comes back at the end, after a failure of ours and at a signal that ends us. Without `-t`, signals
are passed on (`--sig-proxy=false` switches that off); the third ctrl-c ends the client alone.

## --format

`table` (the default), `json` (one object a line), `table TEMPLATE`, or a template: a subset of Go's text/template.

- `{{.Field.Sub}}`, `$`, variables, literals, pipelines, parentheses, `{{- trimming -}}`, `{{/* comments */}}`
- `{{if}}`, `{{else if}}`, `{{else}}`, `{{range $i, $v := .List}}`, `{{with}}`, `{{end}}`
- `index slice len json join split lower upper title truncate pad print println printf`
- `eq ne lt le gt ge and or not`; in listings `{{.Label "key"}}`

A field that does not exist is an error that names those there are; in the condition of `if` and `with` it is false.
"""


def commands(group: Lazy, path: str) -> Iterator[tuple[str, Entry, Verb | Lazy]]:
    """Every visible command below a group, groups before their commands."""
    context = click.Context(group, info_name=group.name)
    for name, entry in group.entries.items():
        found = group.get_command(context, name)
        if entry.hidden or not isinstance(found, (Verb, Lazy)):
            continue
        yield f"{path} {name}", entry, found
        if isinstance(found, Lazy):
            yield from commands(found, f"{path} {name}")


def section(path: str, verb: Verb) -> Iterator[str]:
    """One command: what it does, how it is called, its flags, examples."""
    context = click.Context(verb, info_name=path)
    yield f"\n### {path}\n"
    yield f"    {path} {' '.join(verb.collect_usage_pieces(context))}\n"
    yield (verb.help or "").replace("\n    ", "\n").strip() + "\n"
    records = [p.get_help_record(context) for p in verb.params if isinstance(p, click.Option)]
    rows = [f"| `{record[0].strip()}` | {record[1]} |".replace("|RO", "\\|RO") for record in records if record]
    if rows:
        yield "\n".join(["| flag | meaning |", "| --- | --- |", *rows]) + "\n"
    if verb.examples:
        yield "\n".join(f"    {line}" for line in verb.examples.strip().splitlines()) + "\n"


def manual() -> str:
    """The whole page. A command that stands at two places is told once, where it stands alone if it does."""
    out, told = [HEAD, "\n## Commands\n"], dict[int, str]()
    found = [row for row in commands(ROOT, "wherry") if isinstance(row[2], Verb)]
    for path, _, verb in sorted(found, key=lambda row: (row[0].count(" "), row[0])):
        assert isinstance(verb, Verb)
        if id(verb.made) not in told:
            told[id(verb.made)] = path
            out.extend(section(path, verb))
    same = [f"`{p}` is `{told[id(v.made)]}`" for p, _, v in found if isinstance(v, Verb) and told[id(v.made)] != p]
    return "\n".join(out) + "\n## Other names\n\n" + ", ".join(same) + ".\n"


if __name__ == "__main__":
    sys.stdout.write(manual())
