"""Which tools of the scenarios change a state: found by observation, since the leaderboard does not say.

The digest of all simulators is taken before and after each call of the ground truth. A tool that ever changed it is in
the table; random generators are part of the state, so a tool that draws from one is, too. The tests observe it again.
"""

CHANGING = frozenset(
    {
        "activateParkingBrake",
        "add_contact",
        "add_to_watchlist",
        "authenticate_travel",
        "authenticate_twitter",
        "book_flight",
        "cancel_booking",
        "cancel_order",
        "cd",
        "close_ticket",
        "comment",
        "cp",
        "create_ticket",
        "delete_message",
        "echo",
        "edit_ticket",
        "fillFuelTank",
        "fund_account",
        "get_flight_cost",
        "get_outside_temperature_from_google",
        "lockDoors",
        "mention",
        "message_login",
        "mkdir",
        "mv",
        "place_order",
        "post_tweet",
        "pressBrakePedal",
        "purchase_insurance",
        "register_credit_card",
        "remove_stock_from_watchlist",
        "resolve_ticket",
        "retweet",
        "rm",
        "rmdir",
        "send_message",
        "setCruiseControl",
        "setHeadlights",
        "set_budget_limit",
        "set_navigation",
        "startEngine",
        "ticket_login",
        "touch",
        "trading_logout",
        "withdraw_funds",
    }
)
"""Names of tools; no two simulators have one in common."""
