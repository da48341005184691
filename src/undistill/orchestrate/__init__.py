"""From what somebody asks for to what came out: plan, cost, executors, progress, results."""
