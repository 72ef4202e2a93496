package blk

// A Quitter is a [Queue] in which requests may wait for long before they are begun:
// for other queues, or for their share.
type Quitter interface {
	Queue

	// Quit says that nobody takes the answers any more. What has not been begun
	// fails with ECANCELED, from the next Reap on: a client that has connected again
	// would find an old write to come after its new ones. What is in flight goes on,
	// and is to be reaped. The queue is then good for nothing but Close.
	Quit()
}
