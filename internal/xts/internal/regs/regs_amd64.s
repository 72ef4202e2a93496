#include "textflag.h"

// func Fill(p *[16]byte)
TEXT ·Fill(SB), NOSPLIT, $0-8
	MOVQ  p+0(FP), AX
	MOVOU (AX), X0
	MOVO  X0, X1
	MOVO  X0, X2
	MOVO  X0, X3
	MOVO  X0, X4
	MOVO  X0, X5
	MOVO  X0, X6
	MOVO  X0, X7
	MOVO  X0, X8
	MOVO  X0, X9
	MOVO  X0, X10
	MOVO  X0, X11
	MOVO  X0, X12
	MOVO  X0, X13
	MOVO  X0, X14
	RET

// func Read(out *[16][16]byte)
TEXT ·Read(SB), NOSPLIT, $0-8
	MOVQ  out+0(FP), AX
	MOVOU X0, 0(AX)
	MOVOU X1, 16(AX)
	MOVOU X2, 32(AX)
	MOVOU X3, 48(AX)
	MOVOU X4, 64(AX)
	MOVOU X5, 80(AX)
	MOVOU X6, 96(AX)
	MOVOU X7, 112(AX)
	MOVOU X8, 128(AX)
	MOVOU X9, 144(AX)
	MOVOU X10, 160(AX)
	MOVOU X11, 176(AX)
	MOVOU X12, 192(AX)
	MOVOU X13, 208(AX)
	MOVOU X14, 224(AX)
	MOVOU X15, 240(AX)
	RET

// func Spill(p *[16]byte)
TEXT ·Spill(SB), 0, $4096-8
	MOVQ  p+0(FP), AX
	MOVOU (AX), X0
	LEAQ  frame-4096(SP), DI
	MOVQ  $256, CX

loop:
	MOVOU X0, (DI)
	ADDQ  $16, DI
	DECQ  CX
	JNZ   loop
	PXOR  X0, X0
	RET

// func Stack(out *[Depth]byte)
//
// Its own frame lies where those of earlier calls were.
TEXT ·Stack(SB), 0, $4096-8
	MOVQ out+0(FP), DI
	LEAQ frame-4096(SP), SI
	MOVQ $512, CX
	CLD
	REP; MOVSQ
	RET
