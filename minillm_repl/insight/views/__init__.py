"""What insight tells: frozen views of plain numbers and labels; drawn, or written as JSON by
these names.
"""
