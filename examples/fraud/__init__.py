"""Card fraud: an agent that watches card payments, remembers each card, and puts a card on hold when it must.

Start with `agent.py`, the agent itself. What it is made of: `events.py` (what comes in and what is decided),
`state.py` (what is remembered of a card), `tools.py` (what the model may do) and `bank.py` (the bank's database,
which is not the agent's). Around it: `rules.py` (the offline model), `generator.py` (made-up payments) and
`main.py` (the pipeline and the command line).
"""
