-- How many jobs one call goes through where there may be any number of them: some 10 ms, so that
-- nobody else waits for the server.  What is left is for the next call; the caller sees to it.
local MOST = 1000

-- How many ids of a list one call may look at in search of some: likewise.
local MOST_SEARCHED = 1000000
