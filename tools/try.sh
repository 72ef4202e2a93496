#!/bin/sh
# try.sh DIR: prints three commands to try against a daemon in ./DIR.
dir=$1
echo
echo "Vacate will start in ./$dir. In another terminal, in this folder, try:"
echo
# Commands look there by themselves, unless the system's own daemon runs too.
if [ "$dir" != vacate-dev ] || [ -e /run/vacate/vacate.sock ]; then
	echo "  export VACATE_ADDR=$dir/vacate.sock"
fi
cat <<TRY
  ID=\$(bin/vacate lease open --size 1GiB --tenant me -o yaml | sed -n 's/^id: //p')
  nbdinfo "nbd+unix:///?socket=$dir/leases/\$ID/nbd.sock"
  bin/vacate lease close "\$ID"

Ctrl-C stops the daemon when no lease is open; bin/vacate stop --erase also then.

TRY
