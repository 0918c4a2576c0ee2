"""Stages on Ray: the cluster, the scheduler, the workers, jobs."""
