//go:build !purego

// AES-256-XTS with the AES-NI and SSE2 instructions, eight blocks in flight.
//
// The flow of encryptAESNI and decryptAESNI:
//
//  1. batch: encrypt the numbers of eight data units at once; they are the units'
//     first tweaks. (Fewer units may be left; the others' tweaks are not used.)
//  2. unit:  from its first tweak, compute the tweaks of its first eight blocks.
//  3. group: while eight blocks go through the rounds, compute the tweaks of the
//     next eight. The instructions on tweaks fill the gaps between AES's.
//  4. tail:  the blocks that are left, up to seven, one at a time.
//  5. done:  clear the vector registers and the frame.
//
// The rules that hold throughout:
//
//  - No branch and no address depends on a key or on data.
//  - The frame holds tweaks and nothing else. The last round key is added to a
//    tweak only in a register: both sums in memory would give the key away.
//  - Data is read before it is written, group by group, so dst may be src.
//  - R14, R15 and BP are left alone.
//
// Registers:
//
//	AX  round keys for data            X0-X7  blocks
//	BX  round keys for tweaks          X8     round key
//	SI  source     DI  destination     X9     the last tweak that was computed
//	DX  units left                     X10    the polynomial
//	R8  blocks in a unit               X11    temporary
//	CX  blocks left in the unit        X12    last round key for data
//	R9  number of the batch's first    X13    first round key for data
//	R10 tweaks of this group
//	R11 tweaks of the next group
//	R12 frame, aligned to 16
//	R13 first tweak of the unit
//
// Frame, from R12: 128 bytes of first tweaks, and twice 128 bytes for R10 and R11.

#include "textflag.h"

// x^7+x^2+x+1 for the carry out of bit 127, and 1 for the carry from bit 63 to 64.
DATA polynomial<>+0(SB)/8, $0x87
DATA polynomial<>+8(SB)/8, $1
GLOBL polynomial<>(SB), RODATA|NOPTR, $16

// Offsets in a Schedule (xts.go).
#define DECRYPT 240
#define TWEAK   480
#define LAST    224 // the last of the 15 round keys of one direction

#define FRAME 400 // 3*128, and 16 to align it

// ROUND8 does one round, with OP, on eight blocks.
#define ROUND8(OP, keys, offset) \
	MOVOU offset(keys), X8; \
	OP    X8, X0;           \
	OP    X8, X1;           \
	OP    X8, X2;           \
	OP    X8, X3;           \
	OP    X8, X4;           \
	OP    X8, X5;           \
	OP    X8, X6;           \
	OP    X8, X7

// ROUND1 does one round on one block.
#define ROUND1(OP, offset) \
	MOVOU offset(AX), X8; \
	OP    X8, X0

// DOUBLE multiplies X9 by x: every half is shifted left by one, and the bit that
// falls out of it is put where it belongs.
#define DOUBLE \
	PSHUFD $0x13, X9, X11; \
	PADDQ  X9, X9;         \
	PSRAL  $31, X11;       \
	PAND   X10, X11;       \
	PXOR   X11, X9

// NEXT computes one more tweak and keeps it.
#define NEXT(offset, tweaks) \
	DOUBLE; \
	MOVO X9, offset(tweaks)

// LOAD reads a block, and adds its tweak and the first round key.
#define LOAD(offset, X) \
	MOVOU offset(SI), X;  \
	PXOR  offset(R10), X; \
	PXOR  X13, X

// STORE does the last round of a block, adds its tweak, and writes it. Both are
// added at once: the last step of AES adds the last round key.
#define STORE(OP, offset, X) \
	MOVO  offset(R10), X11; \
	PXOR  X12, X11;         \
	OP    X11, X;           \
	MOVOU X, offset(DI)

// NUMBER starts the first tweak of unit i of a batch.
#define NUMBER(i, X) \
	LEAQ i(R9), CX; \
	MOVQ CX, X;     \
	PXOR X8, X

// BATCH encrypts eight unit numbers from R9, and points R13 at the first.
#define BATCH \
	MOVOU      0(BX), X8;           \
	NUMBER(0, X0);                  \
	NUMBER(1, X1);                  \
	NUMBER(2, X2);                  \
	NUMBER(3, X3);                  \
	NUMBER(4, X4);                  \
	NUMBER(5, X5);                  \
	NUMBER(6, X6);                  \
	NUMBER(7, X7);                  \
	ROUND8(AESENC, BX, 16);         \
	ROUND8(AESENC, BX, 32);         \
	ROUND8(AESENC, BX, 48);         \
	ROUND8(AESENC, BX, 64);         \
	ROUND8(AESENC, BX, 80);         \
	ROUND8(AESENC, BX, 96);         \
	ROUND8(AESENC, BX, 112);        \
	ROUND8(AESENC, BX, 128);        \
	ROUND8(AESENC, BX, 144);        \
	ROUND8(AESENC, BX, 160);        \
	ROUND8(AESENC, BX, 176);        \
	ROUND8(AESENC, BX, 192);        \
	ROUND8(AESENC, BX, 208);        \
	ROUND8(AESENCLAST, BX, LAST);   \
	MOVO       X0, 0(R12);          \
	MOVO       X1, 16(R12);         \
	MOVO       X2, 32(R12);         \
	MOVO       X3, 48(R12);         \
	MOVO       X4, 64(R12);         \
	MOVO       X5, 80(R12);         \
	MOVO       X6, 96(R12);         \
	MOVO       X7, 112(R12);        \
	MOVQ       R12, R13

// UNIT computes the tweaks of a unit's first eight blocks.
#define UNIT \
	LEAQ 128(R12), R10; \
	LEAQ 256(R12), R11; \
	MOVQ R8, CX;        \
	MOVO (R13), X9;     \
	MOVO X9, 0(R10);    \
	NEXT(16, R10);      \
	NEXT(32, R10);      \
	NEXT(48, R10);      \
	NEXT(64, R10);      \
	NEXT(80, R10);      \
	NEXT(96, R10);      \
	NEXT(112, R10)

// GROUP does eight blocks, and computes the tweaks of the next eight meanwhile.
#define GROUP(OP, OPLAST) \
	LOAD(0, X0);           \
	LOAD(16, X1);          \
	LOAD(32, X2);          \
	LOAD(48, X3);          \
	LOAD(64, X4);          \
	LOAD(80, X5);          \
	LOAD(96, X6);          \
	LOAD(112, X7);         \
	ROUND8(OP, AX, 16);    \
	ROUND8(OP, AX, 32);    \
	NEXT(0, R11);          \
	ROUND8(OP, AX, 48);    \
	NEXT(16, R11);         \
	ROUND8(OP, AX, 64);    \
	NEXT(32, R11);         \
	ROUND8(OP, AX, 80);    \
	NEXT(48, R11);         \
	ROUND8(OP, AX, 96);    \
	NEXT(64, R11);         \
	ROUND8(OP, AX, 112);   \
	NEXT(80, R11);         \
	ROUND8(OP, AX, 128);   \
	NEXT(96, R11);         \
	ROUND8(OP, AX, 144);   \
	NEXT(112, R11);        \
	ROUND8(OP, AX, 160);   \
	ROUND8(OP, AX, 176);   \
	ROUND8(OP, AX, 192);   \
	ROUND8(OP, AX, 208);   \
	STORE(OPLAST, 0, X0);  \
	STORE(OPLAST, 16, X1); \
	STORE(OPLAST, 32, X2); \
	STORE(OPLAST, 48, X3); \
	STORE(OPLAST, 64, X4); \
	STORE(OPLAST, 80, X5); \
	STORE(OPLAST, 96, X6); \
	STORE(OPLAST, 112, X7); \
	ADDQ $128, SI;         \
	ADDQ $128, DI;         \
	XCHGQ R10, R11

// BLOCK does one block.
#define BLOCK(OP, OPLAST) \
	LOAD(0, X0);          \
	ROUND1(OP, 16);       \
	ROUND1(OP, 32);       \
	ROUND1(OP, 48);       \
	ROUND1(OP, 64);       \
	ROUND1(OP, 80);       \
	ROUND1(OP, 96);       \
	ROUND1(OP, 112);      \
	ROUND1(OP, 128);      \
	ROUND1(OP, 144);      \
	ROUND1(OP, 160);      \
	ROUND1(OP, 176);      \
	ROUND1(OP, 192);      \
	ROUND1(OP, 208);      \
	STORE(OPLAST, 0, X0); \
	ADDQ $16, SI;         \
	ADDQ $16, DI;         \
	ADDQ $16, R10

// SETUP aligns the frame and loads what stays in registers. AX points at the round
// keys for data.
#define SETUP \
	LEAQ  frame-400(SP), R12;       \
	ADDQ  $15, R12;                 \
	ANDQ  $~15, R12;                \
	MOVOU polynomial<>(SB), X10;    \
	MOVOU LAST(AX), X12;            \
	MOVOU 0(AX), X13

// CLEARX clears the vector registers, used or not.
#define CLEARX \
	PXOR X0, X0;   \
	PXOR X1, X1;   \
	PXOR X2, X2;   \
	PXOR X3, X3;   \
	PXOR X4, X4;   \
	PXOR X5, X5;   \
	PXOR X6, X6;   \
	PXOR X7, X7;   \
	PXOR X8, X8;   \
	PXOR X9, X9;   \
	PXOR X10, X10; \
	PXOR X11, X11; \
	PXOR X12, X12; \
	PXOR X13, X13; \
	PXOR X14, X14; \
	PXOR X15, X15

#define CLEAR64(offset) \
	MOVO X0, (offset+0)(R12);  \
	MOVO X0, (offset+16)(R12); \
	MOVO X0, (offset+32)(R12); \
	MOVO X0, (offset+48)(R12)

// CLEARFRAME clears the tweaks in the frame. X0 is zero.
#define CLEARFRAME \
	CLEAR64(0);   \
	CLEAR64(64);  \
	CLEAR64(128); \
	CLEAR64(192); \
	CLEAR64(256); \
	CLEAR64(320)

// func encryptAESNI(s *Schedule, dst, src *byte, blocks, units int, first uint64)
TEXT ·encryptAESNI(SB), NOSPLIT, $FRAME-48
	MOVQ s+0(FP), AX
	MOVQ dst+8(FP), DI
	MOVQ src+16(FP), SI
	MOVQ blocks+24(FP), R8
	MOVQ units+32(FP), DX
	MOVQ first+40(FP), R9
	LEAQ TWEAK(AX), BX
	SETUP

batch:
	BATCH

unit:
	UNIT
	SUBQ $8, CX
	JB   tail

group:
	GROUP(AESENC, AESENCLAST)
	SUBQ $8, CX
	JAE  group

tail:
	ADDQ $8, CX
	JZ   next

block:
	BLOCK(AESENC, AESENCLAST)
	DECQ CX
	JNZ  block

next:
	DECQ DX
	JZ   done
	ADDQ $16, R13
	LEAQ 128(R12), CX
	CMPQ R13, CX
	JNE  unit
	ADDQ $8, R9
	JMP  batch

done:
	CLEARX
	CLEARFRAME
	RET

// func decryptAESNI(s *Schedule, dst, src *byte, blocks, units int, first uint64)
TEXT ·decryptAESNI(SB), NOSPLIT, $FRAME-48
	MOVQ s+0(FP), AX
	MOVQ dst+8(FP), DI
	MOVQ src+16(FP), SI
	MOVQ blocks+24(FP), R8
	MOVQ units+32(FP), DX
	MOVQ first+40(FP), R9
	LEAQ TWEAK(AX), BX
	ADDQ $DECRYPT, AX
	SETUP

batch:
	BATCH

unit:
	UNIT
	SUBQ $8, CX
	JB   tail

group:
	GROUP(AESDEC, AESDECLAST)
	SUBQ $8, CX
	JAE  group

tail:
	ADDQ $8, CX
	JZ   next

block:
	BLOCK(AESDEC, AESDECLAST)
	DECQ CX
	JNZ  block

next:
	DECQ DX
	JZ   done
	ADDQ $16, R13
	LEAQ 128(R12), CX
	CMPQ R13, CX
	JNE  unit
	ADDQ $8, R9
	JMP  batch

done:
	CLEARX
	CLEARFRAME
	RET

// SPREAD adds to every word of X the words below it: the chain w[i] ^= w[i-1] of
// KeyExpansion (FIPS 197, 5.2), four words at once.
#define SPREAD(X) \
	MOVO   X, X3;  \
	PSLLDQ $4, X3; \
	PXOR   X3, X;  \
	PSLLDQ $4, X3; \
	PXOR   X3, X;  \
	PSLLDQ $4, X3; \
	PXOR   X3, X

// EVEN computes the round key for an even round into X0: from the previous in X2,
// SubWord(RotWord(w)) ^ rcon of its last word.
#define EVEN(rcon, offset) \
	AESKEYGENASSIST $rcon, X2, X1; \
	PSHUFD $0xff, X1, X1;          \
	SPREAD(X0);                    \
	PXOR   X1, X0;                 \
	MOVOU  X0, offset(BX)

// ODD computes the round key for an odd round into X2: from the previous in X0,
// SubWord of its last word.
#define ODD(offset) \
	AESKEYGENASSIST $0, X0, X1; \
	PSHUFD $0xaa, X1, X1;       \
	SPREAD(X2);                 \
	PXOR   X1, X2;              \
	MOVOU  X2, offset(BX)

// KEYS expands the 32 bytes at SI into 15 round keys at BX.
#define KEYS \
	MOVOU 0(SI), X0;  \
	MOVOU 16(SI), X2; \
	MOVOU X0, 0(BX);  \
	MOVOU X2, 16(BX); \
	EVEN(0x01, 32);   \
	ODD(48);          \
	EVEN(0x02, 64);   \
	ODD(80);          \
	EVEN(0x04, 96);   \
	ODD(112);         \
	EVEN(0x08, 128);  \
	ODD(144);         \
	EVEN(0x10, 160);  \
	ODD(176);         \
	EVEN(0x20, 192);  \
	ODD(208);         \
	EVEN(0x40, 224)

// func expandAESNI(s *Schedule, key *[KeySize]byte)
TEXT ·expandAESNI(SB), NOSPLIT, $0-16
	MOVQ s+0(FP), DI
	MOVQ key+8(FP), SI

	// The data key, for encryption.
	MOVQ DI, BX
	KEYS

	// The tweak key.
	LEAQ TWEAK(DI), BX
	ADDQ $32, SI
	KEYS

	// The data key for decryption: reversed, and the keys of the 13 rounds between
	// the first and the last through InvMixColumns (FIPS 197, 5.3.5).
	MOVOU LAST(DI), X0
	MOVOU X0, DECRYPT(DI)
	MOVOU 0(DI), X0
	MOVOU X0, (DECRYPT+LAST)(DI)
	LEAQ  (LAST-16)(DI), SI
	LEAQ  (DECRYPT+16)(DI), BX
	MOVQ  $13, CX

inverse:
	MOVOU  (SI), X0
	AESIMC X0, X0
	MOVOU  X0, (BX)
	SUBQ   $16, SI
	ADDQ   $16, BX
	DECQ   CX
	JNZ    inverse

	CLEARX
	RET
