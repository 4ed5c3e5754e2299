#!/bin/sh
# Takes orders from the second serial line beside the load that follows, prints some addresses to ask about, and now and then
# begins a test and asks for a scan, by markers.
line=/dev/ttyS1
stty raw -echo <$line
# Addresses are printed as they are, and not scrambled.
echo 1 >/proc/sys/kernel/kptr_restrict
awk 'NR % 40 == 1 && NR < 800 { sub("-.*", "", $1); print "soak: address " $1 }' /proc/vmallocinfo
{
    while read -r word; do
        echo "soak: $word"
        case "$word" in
        reboot) reboot -f ;;
        end) poweroff -f ;;
        esac
    done
} <$line &
{
    number=0
    while sleep 7; do
        number=$((number + 1))
        echo "leak:test soak $number" >/proc/self/comm
        echo "libleak: scan" >/dev/kmsg
    done
} &
# Whole, whatever the kernel prints meanwhile.
echo "<1>soak: ready" >/dev/kmsg
