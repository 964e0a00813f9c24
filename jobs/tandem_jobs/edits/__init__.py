"""What jobs that edit pictures share."""
