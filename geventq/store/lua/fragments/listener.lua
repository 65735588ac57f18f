-- The lock tokens of a worker that listens for requests to cancel, `gq:<worker id>:<n>`, and its id in
-- them (cancellation.md 5.1).
local LISTENER = '^gq:(.+):%d+$'
