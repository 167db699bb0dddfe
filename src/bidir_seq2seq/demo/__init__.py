"""A page in the browser on which a trained model writes titles, and shows how: `python -m bidir_seq2seq.demo`."""
