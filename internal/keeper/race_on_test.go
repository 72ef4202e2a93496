//go:build race

package keeper

const raceDetector = true // its shadow memory counts as resident
