"""Compiled code: random numbers, rules, laws, losses and the step made of them. Arrays alone."""
