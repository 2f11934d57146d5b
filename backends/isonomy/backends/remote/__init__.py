"""What remote backends share: the chat-completions format, and recorded retries."""
