package mem

import "vacate/internal/plant"

// poisonByte is unlikely in data, odd, and no valid pointer when repeated.
const poisonByte = 0xDB

func poison(b []byte) {
	for i := range b {
		b[i] = poisonByte
	}
}

// unpoison checks the poison and clears it.
func unpoison(b []byte) {
	if plant.Is(plant.BufferNotCleared) {
		return // Put left the tenant's bytes
	}
	for _, c := range b {
		if c != poisonByte {
			panic("mem: a buffer was written after it was put back")
		}
	}
	Wipe(b)
}
