"""What a handler must do, a module a subject. Each spec talks to the server as a kubelet does and knows no runtime by name."""
