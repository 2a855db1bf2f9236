"""A chat and its history through the client that openapi-python-client made: `generated.py ADDRESS KEY`.

Prints what was answered and what is stored, as JSON.
"""

import json
import sys
from uuid import UUID

from turnwise_client import AuthenticatedClient
from turnwise_client.api.default import get_conversation, list_conversations, list_messages, send_message
from turnwise_client.models import ChatRequest, EndedTurn, Problem

address, key = sys.argv[1:]
client = AuthenticatedClient(base_url=address, token=key, timeout=60)

turn = send_message.sync(client=client, body=ChatRequest(device_id="generated", message="hello"))
assert isinstance(turn, EndedTurn), turn
assert isinstance(turn.conversation_id, UUID), turn
messages = list_messages.sync(turn.conversation_id, client=client)
conversation = get_conversation.sync(turn.conversation_id, client=client)
page = list_conversations.sync(client=client, device_id="generated")
refused = send_message.sync(client=client, body=ChatRequest(device_id="", message="hello"))
assert isinstance(refused, Problem), refused

print(json.dumps({
    "status": turn.status,
    "reply": turn.reply.content,
    "messages": [[message.role, message.content] for message in messages.messages],
    "device_id": conversation.device_id,
    "listed": [str(conversation.id) for conversation in page.conversations] == [str(turn.conversation_id)],
    "refused": [refused.status, [error.field for error in refused.errors]],
}))
