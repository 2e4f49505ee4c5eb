"""What a customer may want: the labels, and what the model is told that each of them means."""

from __future__ import annotations

INTENTS: dict[str, str] = {
    "activate_my_card": "how to activate or start using a new card that has come",
    "age_limit": "how old one must be to open an account; accounts for children and minors under 18",
    "apple_pay_or_google_pay": "using Apple Pay, Google Pay, an Apple Watch or a phone wallet",
    "atm_support": "which cash machines (ATMs) accept the card and where to find one",
    "automatic_top_up": "setting up auto top-up, which adds money by itself when the balance runs low",
    "balance_not_updated_after_bank_transfer": "I made a bank transfer to my account and the balance has not changed",
    "balance_not_updated_after_cheque_or_cash_deposit": "I deposited cash or a cheque and the balance has not changed",
    "beneficiary_not_allowed": "a recipient (beneficiary) is not allowed or cannot be added for transfers",
    "cancel_transfer": "how to cancel, stop, undo or reverse a transfer I sent by mistake, to a wrong account",
    "card_about_to_expire": "my card expires soon; getting a new one before the expiry date",
    "card_acceptance": "where, in which shops, stores and countries the card is accepted for paying",
    "card_arrival": "my ordered card has not arrived; where it is; tracking its delivery in the post",
    "card_delivery_estimate": "how long delivery of a card takes, how many days; express or chosen delivery date",
    "card_linking": "linking or adding an existing card to the app; a found card put back into the app",
    "card_not_working": "my card is broken or does not work at all",
    "card_payment_fee_charged": "an extra fee was charged for a payment or purchase with the card",
    "card_payment_not_recognised": "a card payment or purchase that I do not recognise and did not make",
    "card_payment_wrong_exchange_rate": "a wrong exchange rate was used for a purchase with the card abroad",
    "card_swallowed": "the cash machine (ATM) swallowed, kept, took or ate my card and did not give it back",
    "cash_withdrawal_charge": "why a fee was charged for withdrawing cash at an ATM; are withdrawals free",
    "cash_withdrawal_not_recognised": "a cash withdrawal at an ATM shown in the app that I did not make",
    "change_pin": "how and where to change my PIN to a new one",
    "compromised_card": "someone else may have my card details and uses my card without permission; fraud",
    "contactless_not_working": "contactless payment (tap to pay) does not work",
    "country_support": "in which countries the bank operates and offers accounts and cards; Europe, EU",
    "declined_card_payment": "a payment or purchase with the card was declined or refused in a shop or online",
    "declined_cash_withdrawal": "an ATM declined or refused to give me cash; I could not withdraw",
    "declined_transfer": "a transfer was declined or rejected",
    "direct_debit_payment_not_recognised": "a direct debit that I do not recognise and did not set up",
    "disposable_card_limits": "limits of disposable virtual cards: how many, how many payments a day",
    "edit_personal_details": "changing my details: name, address, phone number or email after moving or marriage",
    "exchange_charge": "what fee exchanging currencies costs; is there a charge or a discount for exchange",
    "exchange_rate": "what the exchange rates are, how they are determined and where they come from",
    "exchange_via_app": "exchanging money between currencies in the app; how to buy a foreign currency",
    "extra_charge_on_statement": "a strange small extra charge or fee, such as one pound or dollar, on my statement",
    "failed_transfer": "a transfer failed, did not go through, did not work; error",
    "fiat_currency_support": "which currencies can be held and exchanged in the account",
    "get_disposable_virtual_card": "how to get a disposable virtual card for one time use",
    "get_physical_card": "where to find the PIN or the details of my physical card; getting a real card",
    "getting_spare_card": "getting a second, additional or spare card for the same account, for family",
    "getting_virtual_card": "how to get, order or create a virtual card",
    "lost_or_stolen_card": "I lost my card or it was stolen; report it, block or freeze it, get a replacement",
    "lost_or_stolen_phone": "I lost my phone or mobile or it was stolen; protect the account, stop the app",
    "order_physical_card": "how to order a physical card and what it costs to have one sent",
    "passcode_forgotten": "I forgot the passcode or password of the app and cannot log in; reset it",
    "pending_card_payment": "a payment or purchase with the card is still pending",
    "pending_cash_withdrawal": "a cash withdrawal at an ATM is still pending",
    "pending_top_up": "a top-up is still pending and not completed yet",
    "pending_transfer": "a transfer is still pending and not completed yet",
    "pin_blocked": "my PIN is blocked after too many wrong tries; how to unblock it",
    "receiving_money": "receiving money from others, my salary or wages; in another currency, such as pounds",
    "Refund_not_showing_up": "a refund from a seller is missing and does not show up in my account or statement",
    "request_refund": "how to request a refund and get my money back for something I bought; item not delivered",
    "reverted_card_payment?": "a card payment was reverted or cancelled and the money was returned to my account",
    "supported_cards_and_currencies": "which cards (credit, debit) and currencies are supported for topping up",
    "terminate_account": "closing, deleting or terminating my account; I want to leave and am not happy",
    "top_up_by_bank_transfer_charge": "is there a fee for adding money (topping up) by bank transfer; SEPA, SWIFT",
    "top_up_by_card_charge": "is there a fee for adding money (topping up) with a card; European or foreign card",
    "top_up_by_cash_or_cheque": "adding money (topping up) with cash or a cheque (check); where to deposit",
    "top_up_failed": "a top-up failed, was declined or rejected, did not work",
    "top_up_limits": "the limit, maximum or most that can be topped up in a day or month",
    "top_up_reverted": "a top-up was reverted, cancelled or returned and the money is gone again",
    "topping_up_by_card": "how to add money (top up) with my debit or credit card",
    "transaction_charged_twice": "a payment was charged twice, double, duplicated; the same transaction two times",
    "transfer_fee_charged": "an extra fee was charged for a transfer",
    "transfer_into_account": "how to transfer or move money into my account from another bank",
    "transfer_not_received_by_recipient": "the recipient, a friend, has not received the transfer I sent; not arrived",
    "transfer_timing": "how long a transfer takes to arrive, how many days; from China, the US or Europe; urgent",
    "unable_to_verify_identity": "I cannot verify or prove my identity; verification fails or does not accept me",
    "verify_my_identity": "how to verify my identity and which documents are needed for the identity check",
    "verify_source_of_funds": "verifying the source of my funds, where my money comes from",
    "verify_top_up": "verifying a top-up with a verification code; why a top-up card must be verified",
    "virtual_card_not_working": "my virtual or disposable card does not work or is declined",
    "visa_or_mastercard": "is the card a Visa or a Mastercard; can I choose which one",
    "why_verify_identity": "why an identity check is necessary; why you need so much of my information; is it required",
    "wrong_amount_of_cash_received": "the cash machine (ATM) gave me less money or another amount than I requested",
    "wrong_exchange_rate_for_cash_withdrawal": "a wrong exchange rate was used when I withdrew cash at an ATM abroad",
}

NEEDS_PERSON = frozenset(
    {
        "card_payment_not_recognised",
        "card_swallowed",
        "cash_withdrawal_not_recognised",
        "compromised_card",
        "direct_debit_payment_not_recognised",
        "lost_or_stolen_card",
        "lost_or_stolen_phone",
        "terminate_account",
        "transaction_charged_twice",
        "unable_to_verify_identity",
        "wrong_amount_of_cash_received",
    }
)
"""Intents where a person decides: money may be gone, or an account may be."""

INSTRUCTIONS = "Which request of a bank's customer is this? The labels mean:\n" + "\n".join(
    f"- {label}: {meaning}" for label, meaning in INTENTS.items()
)

ARTICLES: dict[str, str] = {
    "top topping balance": "Money added by card is there at once, otherwise after one to three working days.",
    "pin passcode": "You set, change and unblock your PIN and passcode in the app under Security.",
    "verify identity age": "Customers must be 18 and prove who they are; the app asks for a document and a photo.",
    "refund reverted": "A refund takes up to ten working days; a reverted payment is back on your balance at once.",
    "exchange currency currencies": "You exchange money in the app; rate and fee are shown before you agree.",
    "transfer receiving beneficiary": "A transfer takes one to three working days; until it is sent you can cancel it.",
    "atm cash withdrawal": "Machines with our card network's sign take the card; the app shows fees and limits.",
    "virtual disposable": "You make virtual cards in the app under Cards; a disposable one changes after each payment.",
    "card": "You order, activate, link and freeze cards in the app; a new one arrives within ten working days.",
    "account country personal": "You find your account and your details in the app under Profile.",
}
"""Help articles by the words of the intents that they are about; the first that fits is taken."""


def article(intent: str) -> str:
    """The help article for an intent."""
    named = set(intent.lower().split("_"))
    found = (text for words, text in ARTICLES.items() if named & set(words.split()))
    return next(found, "Our help pages are in the app under Help.")
