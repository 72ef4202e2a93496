package mem

// Line is the unit in which memory is fetched, in bytes, on the processors that
// Prefetch knows. Others lose nothing by it.
const Line = 64
