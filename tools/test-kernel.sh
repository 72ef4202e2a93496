#!/usr/bin/env bash
# Fetches the kernel that the tests in a virtual machine boot: the one that
# Debian 13's linux-image-cloud-amd64 names. It is unpacked into a cache outside
# the repository and stays there; nothing is installed. apt does the fetching,
# with folders of its own, the machine's mirror, proxy and keyring: it checks the
# index against its signature, and the package against the index.
set -euo pipefail

suite=trixie
meta=linux-image-cloud-amd64
cache=${XDG_CACHE_HOME:-$HOME/.cache}/vacate-test
kernel=$cache/kernel-$suite
[ ! -e "$kernel/vmlinuz" ] || exit 0

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
if ! command -v apt-get dpkg-deb >/dev/null || [ ! -e "$keyring" ]; then
	echo "test-kernel: needs apt-get, dpkg-deb and $keyring (package debian-archive-keyring): put a kernel with NVMe, ext4 and virtio-console built in at $kernel/vmlinuz by hand" >&2
	exit 1
fi
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 'Component: main' | head -n 1)
[ -n "$mirror" ] || { echo "test-kernel: apt has no index of Debian's main archive: run 'apt-get update' as root" >&2; exit 1; }

mkdir -p "$cache"
dir=$(mktemp -d "$cache/fetch-XXXXXX") && trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir/state/lists/partial" "$dir/cache/archives/partial" "$dir/new"
echo "deb [arch=amd64 signed-by=$keyring] $mirror $suite main" >"$dir/sources.list"
cat >"$dir/apt.conf" <<EOF
Dir::State "$dir/state";
Dir::Cache "$dir/cache";
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "-";
APT::Architecture "amd64";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
EOF
export APT_CONFIG=$dir/apt.conf
apt-get update -qq
package=$(apt-cache show --no-all-versions "$meta" | sed -nE 's/^Depends: (linux-image-[^ ,]+).*/\1/p')
[ -n "$package" ] || { echo "test-kernel: $meta in $suite names no kernel" >&2; exit 1; }
echo "test-kernel: fetching $package"
(cd "$dir" && apt-get download -qq "$package")
dpkg-deb -x "$dir"/"$package"_*.deb "$dir/new"
echo "$package" >"$dir/new/package"
mv "$dir"/new/boot/vmlinuz-* "$dir/new/vmlinuz"
# Two may fetch at once: the first to be whole stays.
mv -T "$dir/new" "$kernel" 2>/dev/null || [ -e "$kernel/vmlinuz" ]
