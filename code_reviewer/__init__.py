"""How a review is made; it knows no web framework, no database and no logging service.

Read `findings` for the words, `static_analysis` for what ruff says in its cage, `llm` for how a
model is asked and how little of its answer is believed, `review` for the order of it all, `sarif`
and `markdown` for the forms in which it leaves.
"""
