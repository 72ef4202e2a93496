#!/bin/sh
# Makes one image of each kind with the tools that make them in the field, for
# TestSignatures' golden files:
#
#	sudo sh make.sh /tmp/images && go test ./internal/drive -run TestSignatures -pack /tmp/images
#
# Debian: e2fsprogs fdisk xfsprogs btrfs-progs f2fs-tools dosfstools exfatprogs
# ntfs-3g squashfs-tools xorriso lvm2 mdadm cryptsetup-bin bcache-tools
# drbd-utils erofs-utils nilfs-tools udftools. Needs root for loop devices; a
# tool that fails is named and left out.
set -u
out=${1:?folder for the images}
mkdir -p "$out" && cd "$out" || exit 1
file=/etc/os-release
made() { [ "$1" -eq 0 ] || { echo "no $2" >&2; rm -f "$2"; }; }
image() { # NAME SIZE COMMAND... with the image as last argument
	name=$1 size=$2; shift 2
	rm -f "$name" && truncate -s "$size" "$name" && "$@" "$name" >/dev/null 2>&1
	made $? "$name"
}
onloop() { # the same, on a loop device
	name=$1 size=$2; shift 2
	rm -f "$name" && truncate -s "$size" "$name" && loop=$(losetup -f --show "$name") || return
	"$@" "$loop" >/dev/null 2>&1
	status=$?
	sync; losetup -d "$loop"
	made $status "$name"
}
table() { # NAME LABEL-TYPE: two partitions
	rm -f "$1" && truncate -s 64M "$1" && printf 'label: %s\nsize=16M\nsize=16M\n' "$2" | sfdisk -q "$1" >/dev/null 2>&1
	made $? "$1"
}
luks() { echo password | cryptsetup luksFormat -q --type "$1" --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --label tenants "$2" - ; }
luks1() { echo password | cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 "$1" - ; }
luks2() { luks luks2 "$1"; }
md() { metadata=$1; shift; mdadm --create /dev/md/vacate --run --force --level=1 --raid-devices=2 --metadata="$metadata" --bitmap=none "$1" missing && mdadm --stop /dev/md/vacate; }
iso() { xorriso -as mkisofs -quiet -V TENANTS -o "$1" $file; }
squash() { rm -f "$1"; mksquashfs $file "$1" -quiet; }
erofs() { mkdir -p tree; cp $file tree; mkfs.erofs "$1" tree; rm -r tree; }
drbd() { yes | drbdmeta --force 0 v08 "$1" internal create-md; }

table mbr dos
table gpt gpt
table sun sun
table sgi sgi
image ext2 16M mkfs.ext2 -q -F -L tenants
image ext3 16M mkfs.ext3 -q -F -L tenants
image ext4 16M mkfs.ext4 -q -F -L tenants
image xfs 300M mkfs.xfs -q -L tenants
image btrfs 128M mkfs.btrfs -q -L tenants
image f2fs 64M mkfs.f2fs -q -l tenants
image fat12 2M mkfs.fat -F 12 -n TENANTS
image fat16 16M mkfs.fat -F 16 -n TENANTS
image fat32 64M mkfs.fat -F 32 -n TENANTS
image exfat 16M mkfs.exfat -L tenants
image ntfs 16M mkfs.ntfs -q -F -f -L tenants
image nilfs2 200M mkfs.nilfs2 -q -L tenants
image udf 16M mkudffs -l tenants
image swap 16M mkswap -q -L tenants
image iso9660 1M iso
image squashfs 1M squash
image erofs 1M erofs
image luks1 16M luks1
image luks2 32M luks2
onloop lvm 16M pvcreate -ff -y
onloop bcache 64M make-bcache -B
onloop drbd 64M drbd
onloop md-0.90 16M md 0.90
onloop md-1.0 16M md 1.0
onloop md-1.1 16M md 1.1
onloop md-1.2 16M md 1.2
