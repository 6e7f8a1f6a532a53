#!/usr/bin/env python3
"""Writes the copyright notices and licence texts of everything a binary contains, for whoever gives one away:

    python scripts/notices.py [--features cuda] > NOTICES

What a binary contains is what cargo links for this target and these features; the texts are those in the crates'
own sources, each once with the crates that have it. A crate without a text is named with its licence's SPDX expression. Needs cargo and
the sources of the dependencies, which any build has fetched.
"""
import argparse
import collections
import json
import pathlib
import subprocess
import sys

NAMES = ("license", "licence", "copying", "notice", "copyright")


def contained(features, target):
    """The packages that are linked in. `cargo metadata` alone would add optional ones that nothing turns on."""
    chosen = ["--features", features] if features else []
    tree = ["cargo", "tree", "--locked", "--offline", "--package", "qwen-tune", "--target", target, "--edges", "normal,no-proc-macro"]
    lines = subprocess.run([*tree, "--prefix", "none", "--format", "{p}", *chosen], check=True, stdout=subprocess.PIPE, text=True).stdout
    linked = {tuple(line.split()[:2]) for line in lines.splitlines() if line.strip()}
    asked = ["cargo", "metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", target, *chosen]
    packages = json.loads(subprocess.run(asked, check=True, stdout=subprocess.PIPE).stdout)["packages"]
    return [package for package in packages if package["source"] and (package["name"], f"v{package['version']}") in linked]


def texts(package):
    folder = pathlib.Path(package["manifest_path"]).parent
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name.lower().startswith(NAMES) and file.suffix.lower() not in (".rs", ".toml"):
            yield file.read_text(errors="replace").strip()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--features", default="")
    host = next(line.split()[1] for line in subprocess.run(["rustc", "-vV"], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines() if line.startswith("host:"))
    ap.add_argument("--target", default=host)
    args = ap.parse_args()
    packages = sorted(contained(args.features, args.target), key=lambda package: (package["name"], package["version"]))
    by_text, bare = collections.OrderedDict(), []
    for package in packages:
        name = f"{package['name']} {package['version']}"
        found = list(texts(package))
        if not found:
            bare.append((name, package))
        for text in found:
            by_text.setdefault(text, []).append(name)
    print("qwen-tune is licensed under MIT or Apache-2.0, at your option. Its binaries contain the following crates.\n")
    for package in packages:
        print(f"{package['name']} {package['version']}: {package['license'] or 'see its licence file'}; {package['repository'] or 'crates.io'}")
    for text, names in by_text.items():
        print(f"\n{'=' * 100}\n{', '.join(names)}\n{'-' * 100}\n{text}")
    for name, package in bare:
        print(f"\n{'=' * 100}\n{name} carries no text of its own: {package['license']}, by {', '.join(package['authors']) or 'its authors'}")
    print(f"{len(packages)} crates, {len(by_text)} texts, {len(bare)} without one", file=sys.stderr)


if __name__ == "__main__":
    main()
