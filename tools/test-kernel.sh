#!/usr/bin/env bash
# Fetches what the tests in a virtual machine need of Debian 13: the kernel that
# linux-image-cloud-amd64 names, and a folder of programs, which the machine runs
# (file systems' tools, mount, fio, dmsetup), which make it start from a disk (GRUB), and
# which are an independent client on the host (QEMU 10's own driver of
# vhost-user-blk). Both are unpacked into a cache outside the repository and stay
# there; nothing is installed.
# apt does the fetching, with folders of its own, the machine's mirror, proxy and
# keyring: it checks the index against its signature, and each package against the
# index.
set -euo pipefail

suite=trixie
meta=linux-image-cloud-amd64
programs=(dash dmsetup e2fsprogs fdisk fio grub-common grub-pc-bin mount qemu-block-extra qemu-utils util-linux xfsprogs)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/vacate-test
kernel=$cache/kernel-$suite
tools=$cache/programs-$suite
fetched=$tools/packages # the list above, as it was
if [ -e "$kernel/vmlinuz" ] && [ "$(cat "$fetched" 2>/dev/null)" = "${programs[*]}" ]; then
	exit 0
fi

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
if ! command -v apt-get dpkg-deb >/dev/null || [ ! -e "$keyring" ]; then
	echo "test-kernel: needs apt-get, dpkg-deb and $keyring (package debian-archive-keyring): put a kernel with NVMe, ext4 and virtio-console built in at $kernel/vmlinuz by hand, and unpack ${programs[*]} and what they depend on in $tools" >&2
	exit 1
fi
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' 'Component: main' | head -n 1)
[ -n "$mirror" ] || { echo "test-kernel: apt has no index of Debian's main archive: run 'apt-get update' as root" >&2; exit 1; }

mkdir -p "$cache"
dir=$(mktemp -d "$cache/fetch-XXXXXX") && trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir/state/lists/partial" "$dir/cache/archives/partial" "$dir/kernel" "$dir/tools"
echo "deb [arch=amd64 signed-by=$keyring] $mirror $suite main" >"$dir/sources.list"
: >"$dir/status" # nothing is installed: all that a package depends on is fetched
cat >"$dir/apt.conf" <<EOF
Dir::State "$dir/state";
Dir::State::status "$dir/status";
Dir::Cache "$dir/cache";
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "-";
APT::Architecture "amd64";
APT::Install-Recommends "false";
APT::Sandbox::User "";
Debug::NoLocking "true";
Acquire::Languages "none";
Acquire::Retries "5";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
EOF
export APT_CONFIG=$dir/apt.conf
apt-get update -qq

# keep NEW PLACE puts a folder in its place. Two may fetch at once: the first to be
# whole stays.
keep() {
	mv -T "$1" "$2" 2>/dev/null || [ -e "$2" ]
}

if [ ! -e "$kernel/vmlinuz" ]; then
	package=$(apt-cache show --no-all-versions "$meta" | sed -nE 's/^Depends: (linux-image-[^ ,]+).*/\1/p')
	[ -n "$package" ] || { echo "test-kernel: $meta in $suite names no kernel" >&2; exit 1; }
	echo "test-kernel: fetching $package"
	(cd "$dir" && apt-get download -qq "$package")
	dpkg-deb -x "$dir"/"$package"_*.deb "$dir/kernel"
	echo "$package" >"$dir/kernel/package"
	mv "$dir"/kernel/boot/vmlinuz-* "$dir/kernel/vmlinuz"
	keep "$dir/kernel" "$kernel"
fi

if [ "$(cat "$fetched" 2>/dev/null)" != "${programs[*]}" ]; then
	echo "test-kernel: fetching ${programs[*]}"
	apt-get install -qq -y --download-only "${programs[@]}" >/dev/null
	for package in "$dir"/cache/archives/*.deb; do
		dpkg-deb -x "$package" "$dir/tools"
	done
	rm -rf "$dir/tools/usr/share/doc" "$dir/tools/usr/share/locale" "$dir/tools/usr/share/man"
	echo "${programs[*]}" >"$dir/tools/packages"
	rm -rf "$tools" # of an earlier list
	keep "$dir/tools" "$tools"
fi
