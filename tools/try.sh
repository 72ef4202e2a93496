#!/bin/sh
# try.sh DIR: prints three commands to try against a daemon in ./DIR.
cat <<TRY

Vacate will start in ./$1. In another terminal, in this folder, try:

  export VACATE_ADDR=$1/vacate.sock
  ID=\$(bin/vacate lease open --size 1GiB --tenant me -o yaml | sed -n 's/^id: //p')
  nbdinfo "nbd+unix:///?socket=$1/leases/\$ID/nbd.sock"
  bin/vacate lease close "\$ID"

TRY
