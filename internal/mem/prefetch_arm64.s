//go:build !purego

#include "textflag.h"

// func Prefetch(p []byte)
TEXT ·Prefetch(SB), NOSPLIT, $0-24
	MOVD p_base+0(FP), R0
	MOVD p_len+8(FP), R1
	ADD  R0, R1
	JMP  more

line:
	PRFM (R0), PLDL1KEEP
	ADD  $64, R0

more:
	CMP R1, R0
	BLO line
	RET

// func PrefetchStore(p []byte)
TEXT ·PrefetchStore(SB), NOSPLIT, $0-24
	MOVD p_base+0(FP), R0
	PRFM (R0), PSTL1KEEP
	RET
