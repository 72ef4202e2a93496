//go:build !purego

// AES-256-XTS with the instructions AESE, AESMC, AESD and AESIMC, eight blocks in
// flight.
//
// The flow of encryptAESCE and decryptAESCE:
//
//  1. batch: encrypt the numbers of eight data units at once; they are the units'
//     first tweaks. (Fewer units may be left; the others' tweaks are not used.)
//  2. unit:  from its first tweak, compute the tweaks of its first eight blocks.
//  3. group: eight blocks through the rounds, then their tweaks times x^8: those of
//     the next eight.
//  4. tail:  the blocks that are left, up to seven, one at a time.
//  5. done:  clear the vector registers and the frame.
//
// The rules that hold throughout:
//
//  - No branch and no address depends on a key or on data.
//  - The frame holds first tweaks of units and nothing else. No general register
//    ever holds a part of a key, of a tweak or of data.
//  - Data is read before it is written, group by group, so dst may be src.
//  - R16 to R18, and R26 on, are left alone.
//
// AESE adds its round key before the substitution, and AESMC mixes the columns; so
// thirteen pairs of them, AESE once more, and the last round key make a block. The
// two of a pair stand side by side, as processors then run them as one.
//
// A tweak is multiplied in vector registers, every lane on its own: no tweak waits
// for the one before it. T·x^8 is T rotated left by a byte, and what came around
// belongs at the bottom times 0x87 (x^7+x^2+x+1) instead of times 1. The difference,
// times 0x86, is added: a product of bytes without carries (TIMES8). T·x^j is made
// the same way of bits (TIMES).
//
// Registers:
//
//	R0  round keys for data, once        V0-V7    blocks, temporary
//	R1  destination    R2  source        V8-V15   tweaks
//	R3  blocks in a unit                 V16-V30  round keys for data
//	R4  units left                       V31      0x86 in byte 0
//	R5  number of the batch's first
//	R6  round keys for tweaks
//	R7  frame: 128 bytes of first tweaks
//	R8  end of the frame
//	R9  temporary
//	R10 first tweak of the unit
//	R11 blocks left in the unit

#include "textflag.h"

// Offsets in a Schedule (xts.go).
#define DECRYPT 240
#define TWEAK   480
#define LAST    224 // the last of the 15 round keys of one direction

// ADD8 adds K to eight blocks.
#define ADD8(K) \
	VEOR K.B16, V0.B16, V0.B16; \
	VEOR K.B16, V1.B16, V1.B16; \
	VEOR K.B16, V2.B16, V2.B16; \
	VEOR K.B16, V3.B16, V3.B16; \
	VEOR K.B16, V4.B16, V4.B16; \
	VEOR K.B16, V5.B16, V5.B16; \
	VEOR K.B16, V6.B16, V6.B16; \
	VEOR K.B16, V7.B16, V7.B16

// TWEAK8 adds the tweaks to eight blocks.
#define TWEAK8 \
	VEOR V8.B16, V0.B16, V0.B16;  \
	VEOR V9.B16, V1.B16, V1.B16;  \
	VEOR V10.B16, V2.B16, V2.B16; \
	VEOR V11.B16, V3.B16, V3.B16; \
	VEOR V12.B16, V4.B16, V4.B16; \
	VEOR V13.B16, V5.B16, V5.B16; \
	VEOR V14.B16, V6.B16, V6.B16; \
	VEOR V15.B16, V7.B16, V7.B16

// ROUND1 does one round on one block.
#define ROUND1(OP, MIX, K, X) \
	OP  K.B16, X.B16; \
	MIX X.B16, X.B16

// ROUND8 does one round on eight blocks.
#define ROUND8(OP, MIX, K) \
	ROUND1(OP, MIX, K, V0); \
	ROUND1(OP, MIX, K, V1); \
	ROUND1(OP, MIX, K, V2); \
	ROUND1(OP, MIX, K, V3); \
	ROUND1(OP, MIX, K, V4); \
	ROUND1(OP, MIX, K, V5); \
	ROUND1(OP, MIX, K, V6); \
	ROUND1(OP, MIX, K, V7)

// LAST8 does the last round on eight blocks, but for its round key.
#define LAST8(OP, K) \
	OP K.B16, V0.B16; \
	OP K.B16, V1.B16; \
	OP K.B16, V2.B16; \
	OP K.B16, V3.B16; \
	OP K.B16, V4.B16; \
	OP K.B16, V5.B16; \
	OP K.B16, V6.B16; \
	OP K.B16, V7.B16

// NUMBER starts the first tweak of unit i of a batch: F is the lower half of a
// vector register, and the upper one becomes zero.
#define NUMBER(i, F) \
	ADD   $i, R5, R9; \
	FMOVD R9, F

// BATCH encrypts eight unit numbers from R5 into the frame, and points R10 at the
// first. The round keys go through V8 to V11, four at a time.
#define BATCH \
	NUMBER(0, F0);              \
	NUMBER(1, F1);              \
	NUMBER(2, F2);              \
	NUMBER(3, F3);              \
	NUMBER(4, F4);              \
	NUMBER(5, F5);              \
	NUMBER(6, F6);              \
	NUMBER(7, F7);              \
	MOVD   R6, R9;              \
	VLD1.P 64(R9), [V8.B16, V9.B16, V10.B16, V11.B16]; \
	ROUND8(AESE, AESMC, V8);    \
	ROUND8(AESE, AESMC, V9);    \
	ROUND8(AESE, AESMC, V10);   \
	ROUND8(AESE, AESMC, V11);   \
	VLD1.P 64(R9), [V8.B16, V9.B16, V10.B16, V11.B16]; \
	ROUND8(AESE, AESMC, V8);    \
	ROUND8(AESE, AESMC, V9);    \
	ROUND8(AESE, AESMC, V10);   \
	ROUND8(AESE, AESMC, V11);   \
	VLD1.P 64(R9), [V8.B16, V9.B16, V10.B16, V11.B16]; \
	ROUND8(AESE, AESMC, V8);    \
	ROUND8(AESE, AESMC, V9);    \
	ROUND8(AESE, AESMC, V10);   \
	ROUND8(AESE, AESMC, V11);   \
	VLD1   (R9), [V8.B16, V9.B16, V10.B16]; \
	ROUND8(AESE, AESMC, V8);    \
	LAST8(AESE, V9);            \
	ADD8(V10);                  \
	MOVD   R7, R10;             \
	MOVD   R7, R9;              \
	VST1.P [V0.B16, V1.B16, V2.B16, V3.B16], 64(R9); \
	VST1   [V4.B16, V5.B16, V6.B16, V7.B16], (R9)

// TIMES puts V8·x^j into X, by way of Y; n is 64-j, and V0 is V8 with its halves
// exchanged. The bits that fall out of the lower half belong to the upper, and those
// that fall out of the upper (less than a byte) to the lower, times 0x87.
#define TIMES(j, n, X, Y) \
	VSHL   $j, V8.D2, X.D2;        \
	VUSHR  $n, V0.D2, Y.D2;        \
	VEOR   Y.B16, X.B16, X.B16;    \
	VPMULL V31.B8, Y.B8, Y.H8;     \
	VEOR   Y.B16, X.B16, X.B16

// UNIT takes the next first tweak from the frame and computes the tweaks of the
// unit's first eight blocks.
#define UNIT \
	MOVD   R3, R11;                \
	VLD1.P 16(R10), [V8.B16];      \
	VEXT   $8, V8.B16, V8.B16, V0.B16; \
	TIMES(1, 63, V9, V1);          \
	TIMES(2, 62, V10, V2);         \
	TIMES(3, 61, V11, V3);         \
	TIMES(4, 60, V12, V4);         \
	TIMES(5, 59, V13, V5);         \
	TIMES(6, 58, V14, V6);         \
	TIMES(7, 57, V15, V7)

// TIMES8 multiplies X by x^8, by way of Y.
#define TIMES8(X, Y) \
	VEXT   $15, X.B16, X.B16, Y.B16; \
	VPMULL V31.B8, Y.B8, X.H8;       \
	VEOR   Y.B16, X.B16, X.B16

// GROUP does eight blocks, and makes their tweaks those of the next eight.
#define GROUP(OP, MIX) \
	VLD1.P 64(R2), [V0.B16, V1.B16, V2.B16, V3.B16]; \
	VLD1.P 64(R2), [V4.B16, V5.B16, V6.B16, V7.B16]; \
	TWEAK8;               \
	ROUND8(OP, MIX, V16); \
	ROUND8(OP, MIX, V17); \
	ROUND8(OP, MIX, V18); \
	ROUND8(OP, MIX, V19); \
	ROUND8(OP, MIX, V20); \
	ROUND8(OP, MIX, V21); \
	ROUND8(OP, MIX, V22); \
	ROUND8(OP, MIX, V23); \
	ROUND8(OP, MIX, V24); \
	ROUND8(OP, MIX, V25); \
	ROUND8(OP, MIX, V26); \
	ROUND8(OP, MIX, V27); \
	ROUND8(OP, MIX, V28); \
	LAST8(OP, V29);       \
	TWEAK8;               \
	ADD8(V30);            \
	VST1.P [V0.B16, V1.B16, V2.B16, V3.B16], 64(R1); \
	VST1.P [V4.B16, V5.B16, V6.B16, V7.B16], 64(R1); \
	TIMES8(V8, V0);       \
	TIMES8(V9, V1);       \
	TIMES8(V10, V2);      \
	TIMES8(V11, V3);      \
	TIMES8(V12, V4);      \
	TIMES8(V13, V5);      \
	TIMES8(V14, V6);      \
	TIMES8(V15, V7)

// BLOCK does one block, and moves the tweaks of the next ones down.
#define BLOCK(OP, MIX) \
	VLD1.P 16(R2), [V0.B16];    \
	VEOR V8.B16, V0.B16, V0.B16; \
	ROUND1(OP, MIX, V16, V0);   \
	ROUND1(OP, MIX, V17, V0);   \
	ROUND1(OP, MIX, V18, V0);   \
	ROUND1(OP, MIX, V19, V0);   \
	ROUND1(OP, MIX, V20, V0);   \
	ROUND1(OP, MIX, V21, V0);   \
	ROUND1(OP, MIX, V22, V0);   \
	ROUND1(OP, MIX, V23, V0);   \
	ROUND1(OP, MIX, V24, V0);   \
	ROUND1(OP, MIX, V25, V0);   \
	ROUND1(OP, MIX, V26, V0);   \
	ROUND1(OP, MIX, V27, V0);   \
	ROUND1(OP, MIX, V28, V0);   \
	OP   V29.B16, V0.B16;       \
	VEOR V8.B16, V0.B16, V0.B16; \
	VEOR V30.B16, V0.B16, V0.B16; \
	VST1.P [V0.B16], 16(R1);    \
	VMOV V9.B16, V8.B16;        \
	VMOV V10.B16, V9.B16;       \
	VMOV V11.B16, V10.B16;      \
	VMOV V12.B16, V11.B16;      \
	VMOV V13.B16, V12.B16;      \
	VMOV V14.B16, V13.B16

// SETUP loads what stays in registers. R0 points at the round keys for data.
#define SETUP \
	VLD1.P 64(R0), [V16.B16, V17.B16, V18.B16, V19.B16]; \
	VLD1.P 64(R0), [V20.B16, V21.B16, V22.B16, V23.B16]; \
	VLD1.P 64(R0), [V24.B16, V25.B16, V26.B16, V27.B16]; \
	VLD1   (R0), [V28.B16, V29.B16, V30.B16]; \
	MOVD   $0x86, R9;            \
	FMOVD  R9, F31;              \
	MOVD   $tweaks-128(SP), R7;  \
	ADD    $128, R7, R8

#define CLEAR4(A, B, C, D) \
	VEOR A.B16, A.B16, A.B16; \
	VEOR B.B16, B.B16, B.B16; \
	VEOR C.B16, C.B16, C.B16; \
	VEOR D.B16, D.B16, D.B16

// CLEARV clears the vector registers, used or not.
#define CLEARV \
	CLEAR4(V0, V1, V2, V3);     \
	CLEAR4(V4, V5, V6, V7);     \
	CLEAR4(V8, V9, V10, V11);   \
	CLEAR4(V12, V13, V14, V15); \
	CLEAR4(V16, V17, V18, V19); \
	CLEAR4(V20, V21, V22, V23); \
	CLEAR4(V24, V25, V26, V27); \
	CLEAR4(V28, V29, V30, V31)

// CLEARFRAME clears the tweaks in the frame. V0 to V3 are zero.
#define CLEARFRAME \
	VST1.P [V0.B16, V1.B16, V2.B16, V3.B16], 64(R7); \
	VST1   [V0.B16, V1.B16, V2.B16, V3.B16], (R7)

// func encryptAESCE(s *Schedule, dst, src *byte, blocks, units int, first uint64)
TEXT ·encryptAESCE(SB), NOSPLIT, $128-48
	MOVD s+0(FP), R0
	MOVD dst+8(FP), R1
	MOVD src+16(FP), R2
	MOVD blocks+24(FP), R3
	MOVD units+32(FP), R4
	MOVD first+40(FP), R5
	ADD  $TWEAK, R0, R6
	SETUP

batch:
	BATCH

unit:
	UNIT
	SUBS $8, R11
	BLO  tail

group:
	GROUP(AESE, AESMC)
	SUBS $8, R11
	BHS  group

tail:
	ADDS $8, R11
	BEQ  next

block:
	BLOCK(AESE, AESMC)
	SUBS $1, R11
	BNE  block

next:
	SUBS $1, R4
	BEQ  done
	CMP  R8, R10
	BNE  unit
	ADD  $8, R5
	B    batch

done:
	CLEARV
	CLEARFRAME
	RET

// func decryptAESCE(s *Schedule, dst, src *byte, blocks, units int, first uint64)
TEXT ·decryptAESCE(SB), NOSPLIT, $128-48
	MOVD s+0(FP), R0
	MOVD dst+8(FP), R1
	MOVD src+16(FP), R2
	MOVD blocks+24(FP), R3
	MOVD units+32(FP), R4
	MOVD first+40(FP), R5
	ADD  $TWEAK, R0, R6
	ADD  $DECRYPT, R0
	SETUP

batch:
	BATCH

unit:
	UNIT
	SUBS $8, R11
	BLO  tail

group:
	GROUP(AESD, AESIMC)
	SUBS $8, R11
	BHS  group

tail:
	ADDS $8, R11
	BEQ  next

block:
	BLOCK(AESD, AESIMC)
	SUBS $1, R11
	BNE  block

next:
	SUBS $1, R4
	BEQ  done
	CMP  R8, R10
	BNE  unit
	ADD  $8, R5
	B    batch

done:
	CLEARV
	CLEARFRAME
	RET

// In the expansion V3 is zero: AESE with it is ShiftRows and SubBytes, and where all
// four columns are the same, ShiftRows changes nothing.

// SPREAD adds to every word of X the words below it: the chain w[i] ^= w[i-1] of
// KeyExpansion (FIPS 197, 5.2), four words at once.
#define SPREAD(X) \
	VEXT $12, X.B16, V3.B16, V4.B16;  \
	VEOR V4.B16, X.B16, X.B16;        \
	VEXT $12, V4.B16, V3.B16, V4.B16; \
	VEOR V4.B16, X.B16, X.B16;        \
	VEXT $12, V4.B16, V3.B16, V4.B16; \
	VEOR V4.B16, X.B16, X.B16

// SUBLAST puts SubWord of the last word of X into every word of V1.
#define SUBLAST(X) \
	VDUP X.S[3], V1.S4; \
	AESE V3.B16, V1.B16

// EVEN computes the round key for an even round into V0: from the previous in V2,
// SubWord(RotWord(w)) ^ rcon of its last word. As V1 has the word four times, a
// rotation by a byte of the whole is RotWord of each.
#define EVEN(rcon) \
	SUBLAST(V2);                      \
	VEXT   $1, V1.B16, V1.B16, V1.B16; \
	MOVD   $rcon, R4;                 \
	VDUP   R4, V5.S4;                 \
	VEOR   V5.B16, V1.B16, V1.B16;    \
	SPREAD(V0);                       \
	VEOR   V1.B16, V0.B16, V0.B16;    \
	VST1.P [V0.B16], 16(R2)

// ODD computes the round key for an odd round into V2: from the previous in V0,
// SubWord of its last word.
#define ODD \
	SUBLAST(V0);                   \
	SPREAD(V2);                    \
	VEOR   V1.B16, V2.B16, V2.B16; \
	VST1.P [V2.B16], 16(R2)

// KEYS expands the 32 bytes at R1 into 15 round keys at R2, and moves both behind.
#define KEYS \
	VLD1.P 16(R1), [V0.B16]; \
	VLD1.P 16(R1), [V2.B16]; \
	VST1.P [V0.B16], 16(R2); \
	VST1.P [V2.B16], 16(R2); \
	EVEN(0x01); \
	ODD;        \
	EVEN(0x02); \
	ODD;        \
	EVEN(0x04); \
	ODD;        \
	EVEN(0x08); \
	ODD;        \
	EVEN(0x10); \
	ODD;        \
	EVEN(0x20); \
	ODD;        \
	EVEN(0x40)

// func expandAESCE(s *Schedule, key *[KeySize]byte)
TEXT ·expandAESCE(SB), NOSPLIT, $0-16
	MOVD s+0(FP), R0
	MOVD key+8(FP), R1
	VEOR V3.B16, V3.B16, V3.B16

	// The data key, for encryption.
	MOVD R0, R2
	KEYS

	// The tweak key.
	ADD $TWEAK, R0, R2
	KEYS

	// The data key for decryption: reversed, and the keys of the 13 rounds between
	// the first and the last through InvMixColumns (FIPS 197, 5.3.5).
	ADD    $DECRYPT, R0, R2
	ADD    $LAST, R0, R3
	MOVD   $-16, R5
	VLD1.P (R3)(R5), [V0.B16]
	VST1.P [V0.B16], 16(R2)
	MOVD   $13, R4

inverse:
	VLD1.P (R3)(R5), [V0.B16]
	AESIMC V0.B16, V0.B16
	VST1.P [V0.B16], 16(R2)
	SUBS   $1, R4
	BNE    inverse

	VLD1 (R3), [V0.B16]
	VST1 [V0.B16], (R2)
	CLEARV
	RET

// func clearVectors()
TEXT ·clearVectors(SB), NOSPLIT, $0-0
	CLEARV
	RET
