"""What makes recurrent layers fast on a CPU and on a GPU; `rnn.layer` has the plain torch path beside them."""
