package main

import "vacate/internal/nbdclient"

// rows are the rows of the table, in its order.
var rows = []row{
	{
		name: "4k-reads", title: "4 KiB random reads, depth 32, one connection, tmpfs behind", unit: "reads/s",
		contestants: onNBD(job{load: nbdclient.Load{Pattern: nbdclient.RandomRead, Depth: 32}},
			"Vacate", "qemu-nbd LUKS", "nbdkit LUKS", "qemu-nbd raw", "nbdkit file", "nbdkit memory"),
		bars: []bar{times("Vacate", "qemu-nbd LUKS", 7), times("Vacate", "nbdkit memory", 1.4)},
	},
}

// onNBD runs the same job on Vacate and on peers, by name.
func onNBD(j job, names ...string) func(w *world) ([]contestant, error) {
	return func(w *world) (all []contestant, err error) {
		for _, name := range names {
			var s *server
			if name == "Vacate" {
				s, err = w.ours()
			} else {
				s, err = w.peer(name)
			}
			if err != nil {
				return nil, err
			}
			plain := name != "Vacate" && name != "qemu-nbd LUKS" && name != "nbdkit LUKS"
			all = append(all, contestant{name: name, plain: plain, measure: j.on(w, s)})
		}
		return all, nil
	}
}
