"""Names of the fields of conversations and of pairs, in lower case."""

LISTS = (
    *("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "chat", "data"),
    *("chat_messages", "contents"),  # Claude's exports and Gemini's
)
"""Fields that hold a list of messages, or a text with marks of who speaks."""
TEXTS = ("text", "plain_text", "transcript")
"""Fields that hold a text with marks of who speaks."""
QUESTIONS = ("prompt", "instruction", "question", "user", "human", "query", "problem", "inputs")
ANSWERS = ("completion", "response", "output", "solution", "answer", "assistant", "targets", "target")
"""In the order of preference: of a mathematical problem, the solution has the steps to the answer."""
ADDED = ("input", "context")
"""Fields whose text follows the question: Alpaca's and Dolly's."""
SYSTEM = ("system", "system_prompt", "systeminstruction", "system_instruction")
