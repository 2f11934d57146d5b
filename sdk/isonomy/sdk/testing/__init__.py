"""What authors of checks test them with: a guard around a scripted model, and a conformance kit.

Nothing is imported until a name is used: pytest loads `isonomy.sdk.testing.fixtures` at each of its
starts, wherever Isonomy is installed.
"""
