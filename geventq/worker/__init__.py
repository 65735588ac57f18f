"""The worker: takes jobs, runs them as greenlets, renews their locks, settles what became of them.

The map of this room, in reading order:

worker.py       what a program sees: start, pause, cancel, close, events
run/            one job
  life.py         THE MAIN LINE: a job is taken, admitted, run, decided, settled, told
  giving_up.py    the two ways out of it: a lost lock, a stuck job
  admission.py    a stored job -> an execution, and why it may not run
  execution.py    what the worker knows of one attempt
  policy.py       what a job's stored options mean for its runs
  runners.py      the greenlets that jobs run in
  around.py       what is entered around each processor, and left
  decide.py       a result or an error, and a request -> an outcome
  outcome.py      the outcomes there are
  slots.py        what is held, what runs, how many more may
  settle_call.py  the two script calls of the main line
lanes.py        THE MAIN LOOP: settles what has ended and takes what comes next, many at a time
lost_takes.py   jobs of takes whose answer was lost
idle.py         waits for jobs while there are none
marker.py       what it waits for
renewer.py      keeps the locks, and notices the loss of one
stalled.py      brings back the jobs of dead workers
eviction.py     warns of a server that evicts
subscription.py what is asked from other processes: messages, and the records behind them
stages.py       tells those who wait for a cancellation how far it has come
engine.py       makes, starts, ends and buries these parts
closing.py      how a worker ends
told.py         the worker's events, each with its arguments
listeners.py    who listens to them, and how they are called
background.py   what idle, renewer, stalled and eviction have in common
manual.py       jobs that a program takes and settles itself
settings.py     the options;  processor.py  the user's callables;  callables.py  found and counted

Imports go upwards in this order: run/ knows nothing of the parts that use it, no part knows the
engine, the engine knows neither its closing nor the worker.
"""

from geventq.worker.processor import Processors
from geventq.worker.settings import WorkerArguments
from geventq.worker.worker import Worker

__all__ = ["Processors", "Worker", "WorkerArguments"]
