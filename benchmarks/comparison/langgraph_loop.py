"""The support agent with LangGraph: `create_agent`, its SQLite checkpointer with a thread for each customer."""

from __future__ import annotations

import sqlite3

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.sqlite import SqliteSaver

from benchmarks.comparison.loop import consume
from benchmarks.comparison.office_client import Office
from benchmarks.comparison.task import INSTRUCTIONS, Message, Place


def main() -> None:
    """The command line; runs until it is killed."""
    place, _ = Place.parse()
    office = Office(place.office)

    @tool
    def look_up_account(customer: str) -> str:
        """Looks a customer's account up."""
        return office.account(customer)

    @tool
    def refund(customer: str, amount: int, reference: str) -> str:
        """Pays an amount in EUR back to a customer."""
        return office.refund(customer, amount, reference)

    @tool
    def route_to_person(customer: str, queue: str, reference: str) -> str:
        """Hands a message over to a person."""
        return office.route(customer, queue, reference)

    database = sqlite3.connect(f"{place.folder}/checkpoints.db", check_same_thread=False)
    agent = create_agent(
        ChatOpenAI(model="gpt-4o-mini", base_url=place.model, api_key="none"),
        [look_up_account, refund, route_to_person],
        system_prompt=INSTRUCTIONS,
        checkpointer=SqliteSaver(database),
    )

    def handle(message: Message) -> str:
        config: RunnableConfig = {"configurable": {"thread_id": message.customer}}
        state = agent.get_state(config)
        if state.tasks:  # a crash interrupted it: go on from its checkpoint
            agent.invoke(None, config, durability="sync")
        if all(heard.id != message.reference for heard in state.values.get("messages", [])):
            new = HumanMessage(message.told, id=message.reference)
            agent.invoke({"messages": [new]}, config, durability="sync")
        conversation = agent.get_state(config).values["messages"]
        asked = next(at for at, said in enumerate(conversation) if said.id == message.reference)
        return next(said.text for said in conversation[asked:] if isinstance(said, AIMessage) and not said.tool_calls)

    consume(place, handle)


if __name__ == "__main__":
    main()
