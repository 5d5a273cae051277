"""The buyer's side: paying for requests within a budget."""
