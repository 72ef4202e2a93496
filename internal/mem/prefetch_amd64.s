//go:build !purego

#include "textflag.h"

// func Prefetch(p []byte)
TEXT ·Prefetch(SB), NOSPLIT, $0-24
	MOVQ p_base+0(FP), SI
	MOVQ p_len+8(FP), CX
	ADDQ SI, CX
	JMP  more

line:
	PREFETCHT0 (SI)
	ADDQ $64, SI

more:
	CMPQ SI, CX
	JB   line
	RET

// func PrefetchStore(p []byte)
TEXT ·PrefetchStore(SB), NOSPLIT, $0-24
	MOVQ p_base+0(FP), SI
	BYTE $0x0f; BYTE $0x0d; BYTE $0x0e // PREFETCHW (SI), which older processors pass over
	RET
