#!/usr/bin/env bash
# Installs the Debian packages that the tests drive Vacate with: real NBD
# clients, a file system's tools, a second implementation of AES-XTS, an emulator
# of arm64, and the C compiler that the race detector needs. Without root it
# prints the command and goes on: the tests that miss a program then fail, and
# say which.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

# program → package
need=(
	qemu-img:qemu-utils qemu-io:qemu-utils qemu-nbd:qemu-utils
	nbdinfo:libnbd-bin nbdcopy:libnbd-bin nbdfuse:libnbd-bin
	nbdkit:nbdkit fio:fio openssl:openssl fusermount3:fuse3
	mke2fs:e2fsprogs e2fsck:e2fsprogs debugfs:e2fsprogs
	perf:linux-perf taskset:util-linux
	gcc:gcc gdb:gdb-minimal qemu-system-x86_64:qemu-system-x86
	swtpm:swtpm swtpm_ioctl:swtpm-tools
	qemu-storage-daemon:qemu-system-common qemu-aarch64:qemu-user
	node:nodejs
)

missing=()
for pair in "${need[@]}"; do
	command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
if [ -n "$(command -v gcc)" ] && ! echo '#include <stdlib.h>' | gcc -fsyntax-only -x c - 2>/dev/null; then
	missing+=(libc6-dev)
fi
[ ${#missing[@]} -gt 0 ] || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)

command="apt-get install -y --no-install-recommends ${missing[*]}"
if ! command -v apt-get >/dev/null; then
	echo "make test: not a Debian system; please install what provides: ${missing[*]}" >&2
elif [ "$(id -u)" -ne 0 ]; then
	echo "make test: missing packages; tests that need them will fail. To install them:" >&2
	echo "    sudo $command" >&2
else
	echo "make test: installing ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	for pause in 10 30 60 ""; do # a mirror may be busy, or just be changed
		if apt-get update -qq -o DPkg::Lock::Timeout=300 && $command -qq -o Acquire::Retries=5 -o DPkg::Lock::Timeout=300 >/dev/null; then
			exit 0
		fi
		[ -n "$pause" ] || exit 1
		echo "make test: that failed; once more in $pause s" >&2
		sleep "$pause"
	done
fi
