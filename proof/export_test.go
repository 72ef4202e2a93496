package proof

// RaceDetector is for the tests in package proof_test.
const RaceDetector = raceDetector
