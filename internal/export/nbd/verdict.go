package nbd

import "syscall"

// A verdict says whether a request may be carried out, and if not, what the
// client is told.
type verdict uint8

const (
	admitted verdict = iota
	unknownCommand
	unknownFlag
	emptyRange
	rangeInFlush
	misaligned
	tooLong
	tooLongWhole
	outOfRange
	outOfSpace
	noContext
)

// verdicts holds the error value and the text of each; a text has at most
// smallReply−chunkSize−6 bytes (tested).
var verdicts = [...]struct {
	errno uint32
	text  string
}{
	admitted:       {},
	unknownCommand: {nbdEINVAL, "this server does not know that command"},
	unknownFlag:    {nbdEINVAL, "the command has a flag that it does not take, or that was not negotiated"},
	emptyRange:     {nbdEINVAL, "the length is 0"},
	rangeInFlush:   {nbdEINVAL, "a flush has neither offset nor length"},
	misaligned:     {nbdEINVAL, "offset or length is not a multiple of the minimum block size"},
	tooLong:        {nbdEINVAL, "the length is over the maximum block size of 32 MiB"},
	tooLongWhole:   {nbdEOVERFLOW, "more than 256 KiB cannot be sent unfragmented"},
	outOfRange:     {nbdEINVAL, "the range ends behind the end of the volume"},
	outOfSpace:     {nbdENOSPC, "the range ends behind the end of the volume"},
	noContext:      {nbdEINVAL, "no metadata context was negotiated"},
}

// flagsOf lists the flags that a command takes. FUA must be accepted on every
// command once SEND_FUA is offered.
var flagsOf = [...]uint16{
	cmdRead:        cmdFlagFUA | cmdFlagDF,
	cmdWrite:       cmdFlagFUA,
	cmdDisc:        cmdFlagFUA,
	cmdFlush:       cmdFlagFUA,
	cmdTrim:        cmdFlagFUA,
	cmdCache:       cmdFlagFUA,
	cmdWriteZeroes: cmdFlagFUA | cmdFlagNoHole | cmdFlagFastZero,
	cmdBlockStatus: cmdFlagFUA | cmdFlagReqOne,
}

// Terms are what a request is judged by: the volume and what was negotiated.
type terms struct {
	size       uint64 // bytes
	align      uint64 // offsets and lengths are multiples of it; a power of two
	structured bool
	allocation bool // base:allocation was selected
}

// judge says whether r may be carried out.
func (t *terms) judge(r *request) verdict {
	if int(r.typ) >= len(flagsOf) {
		return unknownCommand
	}
	flags := flagsOf[r.typ]
	if !t.structured {
		flags &^= cmdFlagDF
	}
	if r.flags&^flags != 0 {
		return unknownFlag
	}
	if r.typ == cmdFlush {
		if r.off != 0 || r.length != 0 {
			return rangeInFlush
		}
		return admitted
	}
	return t.judgeRange(r)
}

func (t *terms) judgeRange(r *request) verdict {
	length := uint64(r.length)
	switch {
	case length == 0:
		return emptyRange
	case (r.off|length)&(t.align-1) != 0:
		return misaligned
	case length > maxRequest && (r.typ == cmdRead || r.typ == cmdWrite):
		return tooLong
	case r.off > t.size || length > t.size-r.off:
		if r.typ == cmdWrite || r.typ == cmdWriteZeroes {
			return outOfSpace
		}
		return outOfRange
	case r.typ == cmdRead && r.flags&cmdFlagDF != 0 && isLarge(r):
		return tooLongWhole
	case r.typ == cmdBlockStatus && !t.allocation:
		return noContext
	}
	return admitted
}

// errorValue maps an errno of the layers below to what the specification lets a
// server send.
func errorValue(errno syscall.Errno) uint32 {
	switch errno {
	case syscall.EPERM, syscall.EROFS, syscall.EACCES:
		return nbdEPERM
	case syscall.ENOMEM:
		return nbdENOMEM
	case syscall.EINVAL:
		return nbdEINVAL
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return nbdENOSPC
	case syscall.EOVERFLOW:
		return nbdEOVERFLOW
	case syscall.ENOTSUP:
		return nbdENOTSUP
	case syscall.ESHUTDOWN:
		return nbdESHUTDOWN
	}
	return nbdEIO
}

// errorText is what a client is told beside an error value.
func errorText(value uint32) string {
	if value == nbdESHUTDOWN {
		return "the lease of this volume is closed"
	}
	return "the volume's drive did not carry out the request"
}
